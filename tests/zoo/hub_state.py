"""This file holds what a Hub on loopback knows: repositories, commits, large files, and faults to act out.

Modelled: models with branches and pull requests; every commit with all its files; regular files, named by the hash of
their git blob, and large ones, named by their SHA-256; private and gated repositories; two users, of whom one may
write. Not modelled: tags, datasets and spaces, .gitattributes (one rule decides what is large), merges, quotas.
"""

import fnmatch
import hashlib
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FOREVER", "LARGE_NAMES", "Commit", "Fault", "Hub", "Repo", "Request"]
__all__ += ["blob_oid", "is_large", "pointer"]

FOREVER = sys.maxsize
LARGE_NAMES = ("*.safetensors", "*.gguf", "*.onnx", "*.onnx.data")
_LARGE_BYTES = 10_000_000


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps a file as a large one: by its name, its size, or a first 512 bytes that are no text."""
    named = any(fnmatch.fnmatchcase(path, pattern) for pattern in LARGE_NAMES)
    return size > 0 and (named or size > _LARGE_BYTES or b"\0" in sample[:512])


def blob_oid(data: bytes) -> str:
    """The name that git gives to a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def pointer(data: bytes) -> bytes:
    """The text that git keeps in place of a large file."""
    oid = hashlib.sha256(data).hexdigest()
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()
    )


@dataclass(frozen=True)
class Commit:
    """All files of a repository at one time; `parent` is empty for the first commit."""

    oid: str
    files: Mapping[str, bytes] = field(repr=False)
    subject: str
    parent: str


@dataclass
class Repo:
    """A model; pull requests are the branches ``refs/pr/1`` and so on, and `objects` are large files by SHA-256."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict, repr=False)

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, or a whole or shortened hash names."""
        oid = self.branches.get(revision, revision)
        found = (
            [oid]
            if oid in self.commits
            else [name for name in self.commits if name.startswith(oid)]
        )
        return self.commits[found[0]] if found and len(oid) >= 7 else None

    def commit(self, files: Mapping[str, bytes], *, branch: str, subject: str, parent: str) -> str:
        """Put a commit of exactly `files` on top of `branch`, and return its hash."""
        parts = [str(len(self.commits)), parent, subject]
        parts += [f"{path} {hashlib.sha256(data).hexdigest()}" for path, data in files.items()]
        oid = hashlib.sha1("\n".join(parts).encode(), usedforsecurity=False).hexdigest()
        self.commits[oid] = Commit(oid, dict(files), subject, parent)
        self.branches[branch] = oid
        large = [data for path, data in files.items() if is_large(path, len(data), data)]
        self.objects |= {hashlib.sha256(data).hexdigest(): data for data in large}
        return oid


@dataclass(frozen=True)
class Request:
    """One answered request: `path` without its query, and the token that came with it, if any."""

    method: str
    path: str
    range: str
    token: str
    status: int
    # "cdn" for requests to the origin of large files, which must never see a token.
    host: str


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with the next `times` requests that fit, `hits` so far."""

    # As of `fnmatch`, for the path without its query. ``/cdn/org/name/<sha256>/<path>`` is where large files come from,
    # so ``*/model.gguf`` fits both its metadata and its bytes. A method may be ``*``.
    pattern: str
    method: str = "GET"
    times: int = 1
    # Called before the request is looked at.
    before: Callable[[], object] | None = None
    # Answer with this, ``X-Error-Code`` and ``X-Error-Message``.
    status: int = 0
    code: str = ""
    message: str = "not now"
    # End the connection after this many bytes of the body, of which the header announced all. What the request asked
    # for was done. A reset ends it as a crash does, which the client takes for another error, and not as a proxy does.
    cut: int | None = None
    reset: bool = False
    # Send only this many bytes, and announce no more.
    truncate: int | None = None
    # Turn over the bits of the byte at this place.
    flip: int | None = None
    # Name the file by this in ``ETag`` and ``X-Linked-Etag``.
    etag: str = ""
    hits: int = 0


@dataclass
class Hub:
    """A Hub; `url` and `cdn` are set when it is served.

    Parameters
    ----------
    token, reader : str
        The token that may do everything, and that of a user who may read what is public. Any other is refused.
    extra_tree : dict of str to list of dict
        Entries, by repository, that are put into listings of its files: ``path`` and anything that a listing has. An
        entry for a file that exists changes what is listed of it. ``data``, bytes, is served as the file.
    """

    url: str = ""
    cdn: str = ""
    token: str = "hf_secret"
    reader: str = "hf_reader"
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    extra_tree: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def add(
        self, repo: str, files: Mapping[str, bytes], *, private: bool = False, gated: bool = False
    ) -> str:
        """Make `repo` with one commit on ``main``, and return the commit's hash."""
        with self.lock:
            self.repos[repo] = Repo(private=private, gated=gated)
            return self.repos[repo].commit(
                files, branch="main", subject="initial commit", parent=""
            )

    def commit(self, repo: str, changes: Mapping[str, bytes | None]) -> str:
        """Commit `changes` to the main branch of `repo`, None deleting a file, and return the commit's hash."""
        with self.lock:
            head = self.repos[repo].branches["main"]
            files = {**self.repos[repo].commits[head].files, **changes}
            kept = {path: data for path, data in files.items() if data is not None}
            return self.repos[repo].commit(kept, branch="main", subject="commit", parent=head)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The files of `repo` at `revision`."""
        commit = self.repos[repo].find(revision)
        assert commit is not None
        return dict(commit.files)

    def subjects(self, repo: str) -> list[str]:
        """Subjects of the commits of the main branch, the last one first."""
        commit, found = self.repos[repo].find("main"), []
        while commit is not None:
            found.append(commit.subject)
            commit = self.repos[repo].commits.get(commit.parent)
        return found

    def asked(self, pattern: str = "*", method: str = "*") -> list[Request]:
        """The requests whose path fits `pattern`, in the order of their answers."""
        return [r for r in self.requests if _fits(pattern, method, r.method, r.path)]

    def fault(self, pattern: str, **what: Any) -> Fault:
        """Make the next requests that fit go wrong, as `Fault` says; a request meets the first that is not used up."""
        self.faults.append(Fault(pattern=pattern, **what))
        return self.faults[-1]

    def next_fault(self, method: str, path: str) -> Fault | None:
        """The fault that the request meets, now used once more."""
        with self.lock:
            for fault in self.faults:
                if fault.hits < fault.times and _fits(fault.pattern, fault.method, method, path):
                    fault.hits += 1
                    return fault
        return None


def _fits(pattern: str, wanted: str, method: str, path: str) -> bool:
    return wanted in ("*", method) and fnmatch.fnmatchcase(path, pattern)

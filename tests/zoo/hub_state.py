"""This file holds what a Hub on loopback knows: repositories, commits, revisions, large files, and faults to act out.

Modelled: models with branches, tags and pull requests; every commit with all its files; regular files, named by the
hash of their git blob, and large ones, named by their SHA-256; private and gated repositories; two users, of whom
one may write. Not modelled: datasets and spaces, .gitattributes (one rule decides what is large), merges, quotas.
"""

import fnmatch
import hashlib
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "FOREVER",
    "Commit",
    "Fault",
    "Hub",
    "Repo",
    "Request",
    "blob_oid",
    "is_large",
    "pointer",
]

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
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n"
    return text.encode()


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
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict, repr=False)

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag, or a whole or shortened hash names."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        shortened = len(oid) >= 7
        return next(
            (
                c
                for c in self.commits.values()
                if c.oid == oid or (shortened and c.oid.startswith(oid))
            ),
            None,
        )

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
    query: str
    range: str
    token: str
    status: int
    # "cdn" for requests to the origin of large files, which must never see a token.
    host: str


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that fit, `hits` so far; see :meth:`Hub.fault`."""

    pattern: str
    method: str
    times: int
    status: int
    code: str
    message: str
    headers: Mapping[str, str]
    cut: int | None
    reset: bool
    truncate: int | None
    flip: int | None
    etag: str
    pause: float | threading.Event
    before: Callable[[], object] | None
    hits: int = 0

    def matches(self, method: str, path: str) -> bool:
        return self.method in ("*", method) and fnmatch.fnmatchcase(path, self.pattern)


@dataclass
class Hub:
    """A Hub; `url` and `cdn` are set when it is served.

    Parameters
    ----------
    token, reader : str
        The token that may do everything, and that of a user who may read what is public. Any other is refused.
    user : str
        Name of the user that `token` belongs to.
    page_size : int
        Most entries of a page of the file tree.
    extra_tree : dict of str to list of dict
        Entries, by repository, that are put into listings of its files: ``path`` and anything that a listing
        has. An entry for a file that exists changes what is listed of it. ``data``, bytes, is served as the file.
    """

    url: str = ""
    cdn: str = ""
    token: str = "hf_secret"
    reader: str = "hf_reader"
    user: str = "tester"
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    page_size: int = 1000
    extra_tree: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    closing: threading.Event = field(default_factory=threading.Event, repr=False)

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes],
        *,
        private: bool = False,
        gated: bool = False,
        subject: str = "initial commit",
    ) -> str:
        """Make `repo` with one commit on ``main``, and return the commit's hash."""
        with self.lock:
            self.repos[repo] = Repo(private=private, gated=gated)
            return self.repos[repo].commit(files, branch="main", subject=subject, parent="")

    def commit(
        self,
        repo: str,
        changes: Mapping[str, bytes | None],
        *,
        branch: str = "main",
        subject: str = "commit",
    ) -> str:
        """Commit `changes` to `branch` of `repo`, None deleting a file, and return the commit's hash."""
        with self.lock:
            head = self.repos[repo].branches[branch]
            files: dict[str, bytes | None] = {**self.repos[repo].commits[head].files, **changes}
            kept = {path: data for path, data in files.items() if data is not None}
            return self.repos[repo].commit(kept, branch=branch, subject=subject, parent=head)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The files of `repo` at `revision`."""
        commit = self.repos[repo].find(revision)
        if commit is None:
            raise KeyError(revision)
        return dict(commit.files)

    def subjects(self, repo: str, revision: str = "main") -> list[str]:
        """Subjects of the commits that lead to `revision`, the last one first."""
        commit, found = self.repos[repo].find(revision), []
        while commit is not None:
            found.append(commit.subject)
            commit = self.repos[repo].commits.get(commit.parent)
        return found

    def asked(self, pattern: str = "*", method: str = "*") -> list[Request]:
        """The requests whose path fits `pattern`, in the order of their answers."""
        return [
            request
            for request in self.requests
            if fnmatch.fnmatchcase(request.path, pattern) and method in ("*", request.method)
        ]

    def fault(
        self,
        pattern: str,
        *,
        method: str = "GET",
        times: int = 1,
        status: int = 0,
        code: str = "",
        message: str = "not now",
        headers: Mapping[str, str] | None = None,
        cut: int | None = None,
        reset: bool = False,
        truncate: int | None = None,
        flip: int | None = None,
        etag: str = "",
        pause: float | threading.Event = 0.0,
        before: Callable[[], object] | None = None,
    ) -> Fault:
        """Make the next `times` requests whose path and method fit go wrong.

        A request meets the first fault that fits and is not used up. ``/cdn/org/name/<sha256>/<path>`` is where
        large files come from, so ``*/model.gguf`` fits both its metadata and its bytes.

        Parameters
        ----------
        pattern : str
            Pattern, as of `fnmatch`, for the path of the request without its query.
        method : str
            Method of the request, or ``*``.
        times : int
            Number of requests; `FOREVER` for all.
        status, code, message, headers
            Answer with this status, ``X-Error-Code`` and ``X-Error-Message``; 429 comes with ``Retry-After: 0``.
        cut : int
            End the connection after this many bytes of the body, of which the header announced all. What the request
            asked for was done: after ``cut=0`` a commit is there, and its sender does not know.
        reset : bool
            End it as a crash does, which the client takes for another error, and not as a proxy does.
        truncate : int
            Send only this many bytes of the body, and announce no more.
        flip : int
            Turn over the bits of the body's byte at this place.
        etag : str
            Name the file by this in ``ETag`` and ``X-Linked-Etag``.
        pause : float or threading.Event
            Wait this many seconds, or for the event, before answering.
        before : callable
            Called before the request is looked at.
        """
        headers = {"Retry-After": "0"} if status == 429 and headers is None else headers or {}
        fault = Fault(
            pattern,
            method,
            times,
            status,
            code,
            message,
            headers,
            cut,
            reset,
            truncate,
            flip,
            etag,
            pause,
            before,
        )
        self.faults.append(fault)
        return fault

    def next_fault(self, method: str, path: str) -> Fault | None:
        """The fault that the request meets, now used once more."""
        with self.lock:
            for fault in self.faults:
                if fault.hits < fault.times and fault.matches(method, path):
                    fault.hits += 1
                    return fault
        return None

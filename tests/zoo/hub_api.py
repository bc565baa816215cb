"""This file holds what a Hub on loopback answers to the requests of the real client.

Modelled is what the downloads and uploads of the package ask: information, trees, files, whole or in ranges, large ones
by way of another origin; repositories, branches, uploads of regular and of large files, whose hashes are checked,
commits on the head of a branch, and pull requests; who asks, and what they may. Not modelled: the Hub's newer storage
of chunks (Xet), uploads in parts, listings in pages, compression, redirects, tags, merges.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, unquote

from tests.zoo.hub_state import LARGE_NAMES, Commit, Hub, Repo, blob_oid, is_large, pointer

__all__ = ["Answer", "Call", "answer", "refusal"]

_DATE = "2026-01-01T00:00:00.000Z"
_ATTRIBUTES = "".join(f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in LARGE_NAMES)


@dataclass(frozen=True)
class Call:
    """A request: `path` as sent, the query decoded, and the names that the route found in the path."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    token: str
    names: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What is sent back; the length of the body is added."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class HubError(Exception):
    """An answer that ends the work on a request."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.answer = refusal(status, message, **headers)


def refusal(status: int, message: str, code: str = "", **headers: str) -> Answer:
    """A refusal, by the status and the two headers by which the client tells refusals apart."""
    # A header is one line of ASCII, and a name of a file may be anything.
    line = " ".join(message.encode("ascii", "backslashreplace").decode().splitlines())
    named = {"X-Error-Message": line, **({"X-Error-Code": code} if code else {})}
    named |= {"Retry-After": "0"} if status == 429 else {}
    named |= {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(
        status,
        json.dumps({"error": message}).encode(),
        {"Content-Type": "application/json", **named},
    )


def answer(hub: Hub, call: Call) -> Answer:
    """What the Hub says."""
    # A request with a token that nobody has is refused, even where none is needed.
    if call.token not in ("", hub.token, hub.reader):
        return refusal(401, "Invalid credentials in Authorization header")
    method = "GET" if call.method == "HEAD" else call.method
    for wanted, pattern, route in _ROUTES:
        if wanted == method and (match := pattern.fullmatch(call.path)):
            names = {key: unquote(value or "") for key, value in match.groupdict().items()}
            try:
                with hub.lock:
                    return route(hub, replace(call, names=names))
            except HubError as error:
                return error.answer
    return refusal(404, f"no such page: {call.method} {call.path}")


def _as_json(value: object, *, status: int = 200, kind: str = "application/json") -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": kind})


def _repo(hub: Hub, call: Call, *, content: bool = False, write: bool = False) -> Repo:
    """The repository that `call` names, if its sender may see it, and read its files, or write to it."""
    repo, is_owner = hub.repos.get(call.names["repo"]), call.token == hub.token
    if repo is None or (repo.private and not is_owner):
        # Who is not logged in is not told which repositories exist.
        status, why = (404, "Repository not found") if call.token else (401, "Invalid username")
        raise HubError(status, why, code="RepoNotFound")
    if content and repo.gated and not is_owner:
        why = f"Access to model {call.names['repo']} is restricted."
        raise HubError(403 if call.token else 401, why, code="GatedRepo")
    if write and not call.token:
        raise HubError(401, "Invalid username or password.")
    # Everybody who is logged in may open a pull request.
    if write and not is_owner and call.query.get("create_pr") != "1":
        raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
    return repo


def _commit(repo: Repo, revision: str) -> Commit:
    commit = repo.find(revision or "main")
    if commit is None:
        raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
    return commit


def _listed(path: str, data: bytes) -> dict[str, Any]:
    """How a file is listed."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    if not is_large(path, len(data), data):
        return entry | {"oid": blob_oid(data)}
    text, sha256 = pointer(data), hashlib.sha256(data).hexdigest()
    large = {"oid": sha256, "size": len(data), "pointerSize": len(text)}
    return entry | {"oid": blob_oid(text), "lfs": large}


def _listing(hub: Hub, repo: str, commit: Commit) -> list[dict[str, Any]]:
    """Every file, as listed, with what `hub.extra_tree` adds."""
    entries = {path: _listed(path, data) for path, data in commit.files.items()}
    for extra in hub.extra_tree.get(repo, []):
        path = extra["path"]
        entry = entries.get(path) or _listed(path, extra.get("data", b""))
        entries[path] = entry | {key: value for key, value in extra.items() if key != "data"}
    return [entries[path] for path in sorted(entries)]


def _info(hub: Hub, call: Call) -> Answer:
    repo = _repo(hub, call)
    commit = _commit(repo, call.names["revision"])
    name, siblings = call.names["repo"], _listing(hub, call.names["repo"], commit)
    return _as_json(
        {
            "_id": "0" * 24,
            "id": name,
            "modelId": name,
            "sha": commit.oid,
            "tags": [],
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "createdAt": _DATE,
            "lastModified": _DATE,
            "siblings": [{"rfilename": entry["path"]} for entry in siblings],
        }
    )


def _tree(hub: Hub, call: Call) -> Answer:
    commit = _commit(_repo(hub, call), call.names["revision"])
    return _as_json(_listing(hub, call.names["repo"], commit))


def _refs(hub: Hub, call: Call) -> Answer:
    branches = _repo(hub, call).branches.items()
    refs = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in branches]
    return _as_json({"branches": refs, "tags": [], "converts": []})


def _resolve(hub: Hub, call: Call) -> Answer:
    repo = _repo(hub, call, content=True)
    commit, path = _commit(repo, call.names["revision"]), call.names["path"]
    extra = {
        e["path"]: e["data"] for e in hub.extra_tree.get(call.names["repo"], []) if "data" in e
    }
    data = extra.get(path, commit.files.get(path))
    if data is None:
        raise HubError(404, "Entry not found", code="EntryNotFound", X_Repo_Commit=commit.oid)
    entry = _listed(path, data)
    shared = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry["oid"]}"'}
    if "lfs" not in entry:
        return _ranged(call, data, shared)
    sha256 = entry["lfs"]["oid"]
    repo.objects[sha256] = data
    linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
    place = f"{hub.cdn}/cdn/{call.names['repo']}/{sha256}/{quote(path, safe='')}"
    return Answer(302, b"", {**shared, **linked, "Location": place})


def _stored(hub: Hub, call: Call) -> Answer:
    """A large file, from where no token is wanted, as addresses are signed there."""
    if call.token:
        raise HubError(400, "Only one auth mechanism allowed")
    data = hub.repos[call.names["repo"]].objects[call.names["oid"]]
    return _ranged(call, data, {"ETag": f'"{call.names["oid"][:32]}"'})


def _ranged(call: Call, data: bytes, headers: Mapping[str, str]) -> Answer:
    headers = {"Accept-Ranges": "bytes", **headers}
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range", ""))
    if match is None:
        return Answer(200, data, headers)
    first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
    if first > last:
        raise HubError(416, "Range not satisfiable", Content_Range=f"bytes */{len(data)}")
    place = f"bytes {first}-{last}/{len(data)}"
    return Answer(206, data[first : last + 1], {**headers, "Content-Range": place})


def _whoami(hub: Hub, call: Call) -> Answer:
    if not call.token:
        raise HubError(401, "Invalid username or password.")
    is_owner = call.token == hub.token
    role = {"displayName": "test", "role": "write" if is_owner else "read"}
    name = "tester" if is_owner else "reader"
    return _as_json({"type": "user", "name": name, "orgs": [], "auth": {"accessToken": role}})


def _create(hub: Hub, call: Call) -> Answer:
    wanted = call.json()
    repo = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
    if call.token != hub.token:
        raise HubError(403 if call.token else 401, "You don't have the rights to create a model")
    body = {"url": f"{hub.url}/{repo}", "id": repo, "name": repo}
    if repo in hub.repos:
        return _as_json({"error": "You already created this model repo", **body}, status=409)
    files = {".gitattributes": _ATTRIBUTES.encode()}
    hub.add(repo, files, private=wanted.get("visibility") == "private")
    return _as_json(body)


def _branch(hub: Hub, call: Call) -> Answer:
    repo, name = _repo(hub, call, write=True), call.names["name"]
    if name in repo.branches:
        raise HubError(409, f"Reference already exists: {name}")
    repo.branches[name] = _commit(repo, call.json().get("startingPoint", "main")).oid
    return _as_json({})


def _validate(hub: Hub, call: Call) -> Answer:
    """What the client asks about the header of each model card: nothing is found in it."""
    del hub, call
    return _as_json({"errors": [], "warnings": []})


def _preupload(hub: Hub, call: Call) -> Answer:
    commit = _commit(_repo(hub, call, write=True), call.names["revision"])
    answers = []
    for file in call.json()["files"]:
        large = is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
        mode = {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        answers.append({"path": file["path"], **mode})
        if file["path"] in commit.files:
            entry = _listed(file["path"], commit.files[file["path"]])
            answers[-1]["oid"] = entry.get("lfs", entry)["oid"]
    return _as_json({"files": answers, "commitOid": commit.oid})


def _batch(hub: Hub, call: Call) -> Answer:
    # The request does not say whether a pull request will follow, which everybody may open.
    repo = _repo(hub, replace(call, query={"create_pr": "1"}), write=True)
    answers = []
    for wanted in call.json()["objects"]:
        answers.append({"oid": wanted["oid"], "size": wanted["size"]})
        if wanted["oid"] not in repo.objects:
            upload = f"{hub.cdn}/upload/{call.names['repo']}/{wanted['oid']}"
            verify = f"{hub.url}/{call.names['repo']}.git/info/lfs/objects/verify"
            answers[-1]["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
    objects = {"transfer": "basic", "objects": answers}
    return _as_json(objects, kind="application/vnd.git-lfs+json")


def _upload(hub: Hub, call: Call) -> Answer:
    oid = hashlib.sha256(call.body).hexdigest()
    if oid != call.names["oid"]:
        raise HubError(400, f"the object's SHA-256 is {oid}, not {call.names['oid']}")
    hub.repos[call.names["repo"]].objects[oid] = call.body
    return Answer()


def _verify(hub: Hub, call: Call) -> Answer:
    wanted, objects = call.json(), hub.repos[call.names["repo"]].objects
    if len(objects.get(wanted["oid"], b"")) != wanted["size"]:
        raise HubError(404, f"object {wanted['oid']} was not uploaded")
    return _as_json({})


def _make_commit(hub: Hub, call: Call) -> Answer:
    repo, name = _repo(hub, call, write=True), call.names["repo"]
    header, *lines = [json.loads(line) for line in call.body.splitlines()]
    branch, is_pull = call.names["revision"], call.query.get("create_pr") == "1"
    parent, wanted = _commit(repo, branch), header["value"].get("parentCommit", "")
    if is_pull and wanted:
        parent = _commit(repo, wanted)
    elif not parent.oid.startswith(wanted):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    if branch not in repo.branches:
        raise HubError(404, f"Invalid rev id: {branch}", code="RevisionNotFound")
    files = dict(parent.files)
    for line in lines:
        _apply(repo, files, line["key"], line["value"])
    number = 1 + sum(other.startswith("refs/pr/") for other in repo.branches)
    branch = f"refs/pr/{number}" if is_pull else branch
    subject = header["value"]["summary"]
    oid = repo.commit(files, branch=branch, subject=subject, parent=parent.oid)
    said = {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{name}/commit/{oid}"}
    pull = {"pullRequestUrl": f"{hub.url}/{name}/discussions/{number}"} if is_pull else {}
    return _as_json({**said, **pull, "hookOutput": ""})


def _apply(repo: Repo, files: dict[str, bytes], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        data = base64.b64decode(value["content"], validate=True)
        if is_large(path, len(data), data):
            raise HubError(400, f"{path} is too large or no text: upload it as a large file")
        files[path] = data
    elif key == "lfsFile":
        if value["oid"] not in repo.objects:
            raise HubError(400, f"{path} points to object {value['oid']}, which does not exist")
        files[path] = repo.objects[value["oid"]]
    elif key == "deletedFile" and path in files:
        del files[path]
    else:
        raise HubError(400, f"{key} {path} cannot be done")


_Route = Callable[[Hub, Call], Answer]


def _routes(*rows: tuple[str, str, _Route]) -> list[tuple[str, re.Pattern[str], _Route]]:
    """Compile patterns in which {repo}, {revision}, {path}, {oid} and {name} stand for a name in the path."""
    # A name without an owner is well formed, and missing.
    parts = {"repo": "[^/]+(?:/[^/]+)?", "path": ".+", "oid": "[0-9a-f]{64}"}
    parts |= {"revision": "[^/]+", "name": "[^/]+"}
    groups = {part: f"(?P<{part}>{pattern})" for part, pattern in parts.items()}
    return [(method, re.compile(path.format(**groups)), route) for method, path, route in rows]


_ROUTES = _routes(
    ("GET", "/api/whoami-v2", _whoami),
    ("GET", "/api/models/{repo}/tree/{revision}", _tree),
    ("GET", "/api/models/{repo}/refs", _refs),
    ("GET", "/api/models/{repo}(?:/revision/{revision})?", _info),
    ("GET", "/{repo}/resolve/{revision}/{path}", _resolve),
    ("GET", "/cdn/{repo}/{oid}/{path}", _stored),
    ("POST", "/api/repos/create", _create),
    ("POST", "/api/models/{repo}/branch/{name}", _branch),
    ("POST", "/api/validate-yaml", _validate),
    ("POST", "/api/models/{repo}/preupload/{revision}", _preupload),
    ("POST", "/{repo}[.]git/info/lfs/objects/batch", _batch),
    ("PUT", "/upload/{repo}/{oid}", _upload),
    ("POST", "/{repo}[.]git/info/lfs/objects/verify", _verify),
    ("POST", "/api/models/{repo}/commit/{revision}", _make_commit),
)

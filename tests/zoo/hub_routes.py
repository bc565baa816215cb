"""This file holds the answers of a Hub on loopback to each request that the real client makes for models.

Modelled: information, file trees in pages, paths, references and commits of a model; files, whole or in ranges, large
ones by way of another origin; making and deleting repositories, branches and tags; uploads of regular and of large
files, whose hashes are checked; commits, pull requests, and the refusals that the client tells apart. Not modelled:
the Hub's newer storage of chunks (Xet), uploads in parts, compression, redirects of small files to a cache,
discussions other than the pull request that a commit opens, search, and checks of a model card's header.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode

from tests.zoo.hub_state import Commit, Hub, Repo, blob_oid, is_large, pointer

__all__ = ["Answer", "Call", "HubError", "answer"]

_DATE = "2026-01-01T00:00:00.000Z"
_ATTRIBUTES = b"".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n".encode()
    for pattern in ("*.safetensors", "*.gguf", "*.onnx", "*.onnx.data")
)
# Of the Git LFS interface, which the client's uploads speak.
_LFS_TYPE = "application/vnd.git-lfs+json"


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
    """A refusal, by the status and the two headers by which the client tells refusals apart."""

    def __init__(
        self, status: int, message: str, *, code: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        named = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        body = json.dumps({"error": message}).encode()
        self.answer = Answer(
            status, body, {"Content-Type": "application/json", **named, **(headers or {})}
        )


def answer(hub: Hub, call: Call) -> Answer:
    """What the Hub says to `call`."""
    # A request with a token that nobody has is refused, even where none is needed.
    if call.token not in ("", hub.token, hub.reader):
        raise HubError(401, "Invalid credentials in Authorization header")
    method = "GET" if call.method == "HEAD" else call.method
    for wanted, pattern, route in _ROUTES:
        if wanted == method and (match := pattern.fullmatch(call.path)):
            names = {key: unquote(value or "") for key, value in match.groupdict().items()}
            with hub.lock:
                return route(
                    hub,
                    Call(
                        call.method,
                        call.path,
                        call.query,
                        call.headers,
                        call.body,
                        call.token,
                        names,
                    ),
                )
    raise HubError(404, f"no such page: {call.method} {call.path}")


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    kind = {"Content-Type": "application/json"}
    return Answer(status, json.dumps(value).encode(), {**kind, **(headers or {})})


def _find_repo(hub: Hub, call: Call, *, content: bool = False, write: bool = False) -> Repo:
    """The repository that `call` names, if its sender may see it, and read its files, or write to it."""
    repo, owner = hub.repos.get(call.names["repo"]), call.token == hub.token
    if repo is None or (repo.private and not owner):
        # Who is not logged in is not told which repositories exist.
        if not call.token:
            raise HubError(401, "Invalid username or password.", code="RepoNotFound")
        raise HubError(404, "Repository not found", code="RepoNotFound")
    if content and repo.gated and not owner:
        refusal = f"Access to model {call.names['repo']} is restricted."
        raise HubError(403 if call.token else 401, refusal, code="GatedRepo")
    if write and not call.token:
        raise HubError(401, "Invalid username or password.")
    # Everybody who is logged in may open a pull request.
    if write and not owner and call.query.get("create_pr") != "1":
        raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
    return repo


def _find_commit(repo: Repo, revision: str) -> Commit:
    commit = repo.find(revision or "main")
    if commit is None:
        raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
    return commit


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """How a file is listed."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    if not is_large(path, len(data), data):
        return entry | {"oid": blob_oid(data)}
    text = pointer(data)
    sha256 = hashlib.sha256(data).hexdigest()
    large = {"oid": sha256, "size": len(data), "pointerSize": len(text)}
    return entry | {"oid": blob_oid(text), "lfs": large}


def _listing(hub: Hub, repo: str, commit: Commit) -> dict[str, dict[str, Any]]:
    """Every file by its path, as listed, with what `hub.extra_tree` adds."""
    entries = {path: _entry(path, data) for path, data in commit.files.items()}
    for extra in hub.extra_tree.get(repo, []):
        path = extra["path"]
        listed = entries.get(path) or _entry(path, extra.get("data", b""))
        entries[path] = listed | {key: value for key, value in extra.items() if key != "data"}
    return dict(sorted(entries.items()))


def _info(hub: Hub, call: Call) -> Answer:
    repo = _find_repo(hub, call)
    commit = _find_commit(repo, call.names["revision"])
    siblings: list[dict[str, Any]] = []
    for path, entry in _listing(hub, call.names["repo"], commit).items():
        siblings.append({"rfilename": path})
        if call.query.get("blobs"):
            siblings[-1] |= {"size": entry["size"], "blobId": entry["oid"]}
            if large := entry.get("lfs"):
                named = {"sha256": large["oid"], "pointerSize": large["pointerSize"]}
                siblings[-1]["lfs"] = named | {"size": large["size"]}
    state = {"private": repo.private, "gated": "manual" if repo.gated else False, "disabled": False}
    name = {"_id": "0" * 24, "id": call.names["repo"], "modelId": call.names["repo"]}
    counts = {"downloads": 0, "likes": 0, "tags": [], "createdAt": _DATE, "lastModified": _DATE}
    return _json({**name, **state, **counts, "sha": commit.oid, "siblings": siblings})


def _tree(hub: Hub, call: Call) -> Answer:
    commit = _find_commit(_find_repo(hub, call), call.names["revision"])
    folder = call.names["path"].rstrip("/")
    below = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, entry in _listing(hub, call.names["repo"], commit).items():
        if not path.startswith(below):
            continue
        inner = path.removeprefix(below).split("/")
        for depth in range(1, len(inner)):
            parent = below + "/".join(inner[:depth])
            entries[parent] = {
                "type": "directory",
                "path": parent,
                "size": 0,
                "oid": blob_oid(parent.encode()),
            }
        entries[path] = entry
    if call.query.get("recursive") != "true":
        entries = {path: entry for path, entry in entries.items() if "/" not in path[len(below) :]}
    if folder and not entries:
        raise HubError(404, f"{folder} does not exist on {commit.oid}", code="EntryNotFound")
    start = int(call.query.get("cursor", "0"))
    page = list(entries.values())[start : start + hub.page_size]
    if start + hub.page_size >= len(entries):
        return _json(page)
    query = urlencode({**call.query, "cursor": start + hub.page_size})
    return _json(page, headers={"Link": f'<{hub.url}{call.path}?{query}>; rel="next"'})


def _paths(hub: Hub, call: Call) -> Answer:
    commit = _find_commit(_find_repo(hub, call), call.names["revision"])
    listing = _listing(hub, call.names["repo"], commit)
    wanted = parse_qs(call.body.decode()).get("paths", [])
    return _json([listing[path] for path in wanted if path in listing])


def _refs(hub: Hub, call: Call) -> Answer:
    repo = _find_repo(hub, call)

    def named(names: Mapping[str, str], prefix: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in names.items()
        ]

    pulls = {name: oid for name, oid in repo.branches.items() if name.startswith("refs/pr/")}
    branches = {name: oid for name, oid in repo.branches.items() if name not in pulls}
    refs = {"branches": named(branches, "refs/heads/"), "tags": named(repo.tags, "refs/tags/")}
    if call.query.get("include_prs"):
        refs["pullRequests"] = named(pulls, "")
    return _json({**refs, "converts": []})


def _commits(hub: Hub, call: Call) -> Answer:
    repo = _find_repo(hub, call)
    commit: Commit | None = _find_commit(repo, call.names["revision"])
    found = []
    while commit is not None:
        shared = {"authors": [{"user": hub.user}], "date": _DATE, "message": ""}
        found.append({"id": commit.oid, "title": commit.subject, **shared})
        commit = repo.commits.get(commit.parent)
    return _json(found)


def _resolve(hub: Hub, call: Call) -> Answer:
    repo = _find_repo(hub, call, content=True)
    commit, path = _find_commit(repo, call.names["revision"]), call.names["path"]
    extra = {entry["path"]: entry["data"] for entry in _extras(hub, call) if "data" in entry}
    data = extra.get(path, commit.files.get(path))
    if data is None:
        raise HubError(
            404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": commit.oid}
        )
    shared = {"X-Repo-Commit": commit.oid, "Content-Type": "application/octet-stream"}
    entry = _entry(path, data)
    if "lfs" not in entry:
        return _ranged(call, data, {**shared, "ETag": f'"{entry["oid"]}"'})
    sha256 = entry["lfs"]["oid"]
    repo.objects[sha256] = data
    linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
    place = f"{hub.cdn}/cdn/{call.names['repo']}/{sha256}/{quote(path)}"
    return Answer(302, b"", {**shared, **linked, "ETag": f'"{entry["oid"]}"', "Location": place})


def _extras(hub: Hub, call: Call) -> list[dict[str, Any]]:
    return hub.extra_tree.get(call.names["repo"], [])


def _stored(hub: Hub, call: Call) -> Answer:
    """A large file, from where no token is wanted, as addresses are signed there."""
    if call.token:
        raise HubError(400, "Only one auth mechanism allowed")
    repo = hub.repos.get(call.names["repo"])
    data = repo.objects.get(call.names["oid"]) if repo else None
    if data is None:
        raise HubError(404, "The specified key does not exist.")
    return _ranged(
        call, data, {"ETag": f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'}
    )


def _ranged(call: Call, data: bytes, headers: Mapping[str, str]) -> Answer:
    headers = {"Accept-Ranges": "bytes", **headers}
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range", ""))
    if match is None:
        return Answer(200, data, headers)
    first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
    if first > last:
        raise HubError(
            416, "Range not satisfiable", headers={"Content-Range": f"bytes */{len(data)}"}
        )
    place = f"bytes {first}-{last}/{len(data)}"
    return Answer(206, data[first : last + 1], {**headers, "Content-Range": place})


def _whoami(hub: Hub, call: Call) -> Answer:
    if not call.token:
        raise HubError(401, "Invalid username or password.")
    owner = call.token == hub.token
    role = {"displayName": "test", "role": "write" if owner else "read"}
    name = hub.user if owner else "reader"
    return _json({"type": "user", "name": name, "orgs": [], "auth": {"accessToken": role}})


def _allowed(hub: Hub, call: Call) -> Answer:
    _find_repo(hub, call, content=True, write=call.path.endswith("/write"))
    return _json({})


def _create(hub: Hub, call: Call) -> Answer:
    wanted = call.json()
    space = wanted.get("organization") or hub.user
    repo = f"{space}/{wanted['name']}"
    if not call.token:
        raise HubError(401, "Invalid username or password.")
    if call.token != hub.token:
        refusal = f'You don\'t have the rights to create a model under the namespace "{space}"'
        raise HubError(403, refusal)
    body = {"url": f"{hub.url}/{repo}", "id": repo, "name": repo}
    if repo in hub.repos:
        return _json({"error": "You already created this model repo", **body}, 409)
    hub.add(repo, {".gitattributes": _ATTRIBUTES}, private=wanted.get("visibility") == "private")
    return _json(body)


def _delete(hub: Hub, call: Call) -> Answer:
    wanted = call.json()
    repo = f"{wanted.get('organization') or hub.user}/{wanted['name']}"
    _find_repo(hub, Call(**{**vars(call), "names": {"repo": repo}}), write=True)
    del hub.repos[repo]
    return _json({})


def _point(hub: Hub, call: Call) -> Answer:
    """Make a branch or a tag."""
    repo, wanted = _find_repo(hub, call, write=True), call.json()
    if call.names["kind"] == "branch":
        names, name, start = repo.branches, call.names["name"], wanted.get("startingPoint", "main")
    else:
        names, name, start = repo.tags, wanted["tag"], call.names["name"]
    if name in names:
        raise HubError(409, f"Reference already exists: {name}")
    names[name] = _find_commit(repo, start).oid
    return _json({})


def _preupload(hub: Hub, call: Call) -> Answer:
    commit = _find_commit(_find_repo(hub, call, write=True), call.names["revision"])
    answers = []
    for file in call.json()["files"]:
        large = is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
        mode = {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        answers.append({"path": file["path"], **mode})
        if file["path"] in commit.files:
            entry = _entry(file["path"], commit.files[file["path"]])
            answers[-1]["oid"] = entry.get("lfs", entry)["oid"]
    return _json({"files": answers, "commitOid": commit.oid})


def _batch(hub: Hub, call: Call) -> Answer:
    # The request does not say whether a pull request will follow, which everybody may open.
    pull = Call(**{**vars(call), "query": {"create_pr": "1"}})
    repo, answers = _find_repo(hub, pull, write=True), []
    for wanted in call.json()["objects"]:
        answers.append({"oid": wanted["oid"], "size": wanted["size"]})
        if wanted["oid"] not in repo.objects:
            upload = f"{hub.cdn}/upload/{call.names['repo']}/{wanted['oid']}"
            verify = f"{hub.url}/{call.names['repo']}.git/info/lfs/objects/verify"
            answers[-1]["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
    return _json({"transfer": "basic", "objects": answers}, headers={"Content-Type": _LFS_TYPE})


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
    return _json({})


def _commit(hub: Hub, call: Call) -> Answer:
    repo, name = _find_repo(hub, call, write=True), call.names["repo"]
    lines = [json.loads(line) for line in call.body.splitlines()]
    header, branch = lines[0]["value"], call.names["revision"]
    pull = call.query.get("create_pr") == "1"
    parent = _find_commit(repo, branch)
    if wanted := header.get("parentCommit"):
        if pull:
            parent = _find_commit(repo, wanted)
        elif not parent.oid.startswith(wanted):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
    if branch not in repo.branches:
        raise HubError(404, f"Invalid rev id: {branch}", code="RevisionNotFound")
    files = dict(parent.files)
    for line in lines[1:]:
        _apply(repo, files, line["key"], line["value"])
    number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
    if pull:
        branch = f"refs/pr/{number}"
    oid = repo.commit(files, branch=branch, subject=header["summary"], parent=parent.oid)
    said = {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{name}/commit/{oid}"}
    if pull:
        said["pullRequestUrl"] = f"{hub.url}/{name}/discussions/{number}"
    return _json({**said, "hookOutput": ""})


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
    elif key in ("deletedFile", "deletedFolder"):
        gone = [name for name in files if name == path or name.startswith(path.rstrip("/") + "/")]
        if not gone:
            raise HubError(404, "A file with this name doesn't exist", code="EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise HubError(400, f"unknown line of a commit: {key}")


_Route = Callable[[Hub, Call], Answer]


def _routes(*rows: tuple[str, str, _Route]) -> list[tuple[str, re.Pattern[str], _Route]]:
    """Compile patterns in which {repo}, {revision} and {path} stand for names in a path."""
    parts = {"repo": "[^/]+/[^/]+", "revision": "[^/]+", "path": ".+"}
    return [
        (
            method,
            re.compile(pattern.format(**{k: f"(?P<{k}>{v})" for k, v in parts.items()})),
            route,
        )
        for method, pattern, route in rows
    ]


_ROUTES = _routes(
    ("GET", "/api/whoami-v2", _whoami),
    ("GET", "/api/models/{repo}(?:/revision/{revision})?", _info),
    ("GET", "/api/models/{repo}/tree/{revision}(?:/{path})?", _tree),
    ("POST", "/api/models/{repo}/paths-info/{revision}", _paths),
    ("GET", "/api/models/{repo}/refs", _refs),
    ("GET", "/api/models/{repo}/commits/{revision}", _commits),
    ("GET", "/api/models/{repo}/auth-check(?:/write)?", _allowed),
    ("GET", "/{repo}/resolve/{revision}/{path}", _resolve),
    ("GET", "/cdn/{repo}/(?P<oid>[0-9a-f]+)/{path}", _stored),
    ("POST", "/api/repos/create", _create),
    ("DELETE", "/api/repos/delete", _delete),
    ("POST", "/api/models/{repo}/(?P<kind>branch|tag)/(?P<name>[^/]+)", _point),
    ("POST", "/api/validate-yaml", lambda _hub, _call: _json({"errors": [], "warnings": []})),
    ("POST", "/api/models/{repo}/preupload/{revision}", _preupload),
    ("POST", "/{repo}[.]git/info/lfs/objects/batch", _batch),
    ("PUT", "/upload/{repo}/(?P<oid>[0-9a-f]+)", _upload),
    ("POST", "/{repo}[.]git/info/lfs/objects/verify", _verify),
    ("POST", "/api/models/{repo}/commit/{revision}", _commit),
)

"""This file holds what a Hub on loopback answers to who reads: information, listings, references, and files.

Modelled: information of a model; trees in pages, and paths; references and commits; files, whole or in ranges, large
ones by way of another origin; who asks and what they may. Not modelled: the last commit of each file, compression,
redirects of small files to a cache and of models that were renamed, the cards of gated models, search.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from tests.zoo.hub_answers import Answer, Call, HubError, as_json, find_commit, find_repo, listed
from tests.zoo.hub_state import Commit, Hub, blob_oid

__all__ = ["allowed", "commits", "info", "paths", "refs", "resolve", "stored", "tree", "whoami"]

_DATE = "2026-01-01T00:00:00.000Z"


def info(hub: Hub, call: Call) -> Answer:
    repo = find_repo(hub, call)
    commit = find_commit(repo, call.names["revision"])
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
    return as_json({**name, **state, **counts, "sha": commit.oid, "siblings": siblings})


def tree(hub: Hub, call: Call) -> Answer:
    commit = find_commit(find_repo(hub, call), call.names["revision"])
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
        return as_json(page)
    query = urlencode({**call.query, "cursor": start + hub.page_size})
    return as_json(page, headers={"Link": f'<{hub.url}{call.path}?{query}>; rel="next"'})


def paths(hub: Hub, call: Call) -> Answer:
    commit = find_commit(find_repo(hub, call), call.names["revision"])
    listing = _listing(hub, call.names["repo"], commit)
    wanted = parse_qs(call.body.decode()).get("paths", [])
    return as_json([listing[path] for path in wanted if path in listing])


def refs(hub: Hub, call: Call) -> Answer:
    repo = find_repo(hub, call)

    def named(names: Mapping[str, str], prefix: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in names.items()
        ]

    pulls = {name: oid for name, oid in repo.branches.items() if name.startswith("refs/pr/")}
    branches = {name: oid for name, oid in repo.branches.items() if name not in pulls}
    refs = {"branches": named(branches, "refs/heads/"), "tags": named(repo.tags, "refs/tags/")}
    if call.query.get("include_prs"):
        refs["pullRequests"] = named(pulls, "")
    return as_json({**refs, "converts": []})


def commits(hub: Hub, call: Call) -> Answer:
    repo = find_repo(hub, call)
    commit: Commit | None = find_commit(repo, call.names["revision"])
    found = []
    while commit is not None:
        shared = {"authors": [{"user": hub.user}], "date": _DATE, "message": ""}
        found.append({"id": commit.oid, "title": commit.subject, **shared})
        commit = repo.commits.get(commit.parent)
    return as_json(found)


def resolve(hub: Hub, call: Call) -> Answer:
    repo = find_repo(hub, call, content=True)
    commit, path = find_commit(repo, call.names["revision"]), call.names["path"]
    extra = {entry["path"]: entry["data"] for entry in _extras(hub, call) if "data" in entry}
    data = extra.get(path, commit.files.get(path))
    if data is None:
        raise HubError(
            404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": commit.oid}
        )
    shared = {"X-Repo-Commit": commit.oid, "Content-Type": "application/octet-stream"}
    entry = listed(path, data)
    if "lfs" not in entry:
        return _ranged(call, data, {**shared, "ETag": f'"{entry["oid"]}"'})
    sha256 = entry["lfs"]["oid"]
    repo.objects[sha256] = data
    linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
    place = f"{hub.cdn}/cdn/{call.names['repo']}/{sha256}/{quote(path, safe='')}"
    return Answer(302, b"", {**shared, **linked, "ETag": f'"{entry["oid"]}"', "Location": place})


def stored(hub: Hub, call: Call) -> Answer:
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


def whoami(hub: Hub, call: Call) -> Answer:
    if not call.token:
        raise HubError(401, "Invalid username or password.")
    owner = call.token == hub.token
    role = {"displayName": "test", "role": "write" if owner else "read"}
    name = hub.user if owner else "reader"
    return as_json({"type": "user", "name": name, "orgs": [], "auth": {"accessToken": role}})


def allowed(hub: Hub, call: Call) -> Answer:
    find_repo(hub, call, content=True, write=call.path.endswith("/write"))
    return as_json({})


def _listing(hub: Hub, repo: str, commit: Commit) -> dict[str, dict[str, Any]]:
    """Every file by its path, as listed, with what `hub.extra_tree` adds."""
    entries = {path: listed(path, data) for path, data in commit.files.items()}
    for extra in hub.extra_tree.get(repo, []):
        path = extra["path"]
        entry = entries.get(path) or listed(path, extra.get("data", b""))
        entries[path] = entry | {key: value for key, value in extra.items() if key != "data"}
    return dict(sorted(entries.items()))


def _extras(hub: Hub, call: Call) -> list[dict[str, Any]]:
    return hub.extra_tree.get(call.names["repo"], [])


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

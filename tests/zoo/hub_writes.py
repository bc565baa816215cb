"""This file holds what a Hub on loopback answers to who writes: repositories, branches, uploads and commits.

Modelled: making and deleting repositories, branches and tags; uploads of regular and of large files, whose hashes are
checked; commits on the head of a branch or on a commit of it, and pull requests. Not modelled: the Hub's newer storage
of chunks (Xet), uploads in parts, .gitattributes and .gitignore of a repository, discussions other than the pull
request that a commit opens, merging it, and checks of a model card's header.
"""

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

from tests.zoo.hub_answers import Answer, Call, HubError, as_json, find_commit, find_repo, listed
from tests.zoo.hub_state import LARGE_NAMES, Hub, Repo, is_large

__all__ = [
    "batch",
    "commit",
    "create",
    "delete",
    "point",
    "preupload",
    "upload",
    "validate",
    "verify",
]

_ATTRIBUTES = "".join(
    f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in LARGE_NAMES
).encode()
# Of the Git LFS interface, which the client's uploads speak.
_LFS_TYPE = "application/vnd.git-lfs+json"


def create(hub: Hub, call: Call) -> Answer:
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
        return as_json({"error": "You already created this model repo", **body}, 409)
    hub.add(repo, {".gitattributes": _ATTRIBUTES}, private=wanted.get("visibility") == "private")
    return as_json(body)


def delete(hub: Hub, call: Call) -> Answer:
    wanted = call.json()
    repo = f"{wanted.get('organization') or hub.user}/{wanted['name']}"
    find_repo(hub, replace(call, names={"repo": repo}), write=True)
    del hub.repos[repo]
    return as_json({})


def point(hub: Hub, call: Call) -> Answer:
    """Make a branch or a tag."""
    repo, wanted = find_repo(hub, call, write=True), call.json()
    if call.names["kind"] == "branch":
        names, name, start = repo.branches, call.names["name"], wanted.get("startingPoint", "main")
    else:
        names, name, start = repo.tags, wanted["tag"], call.names["name"]
    if name in names:
        raise HubError(409, f"Reference already exists: {name}")
    names[name] = find_commit(repo, start).oid
    return as_json({})


def preupload(hub: Hub, call: Call) -> Answer:
    commit = find_commit(find_repo(hub, call, write=True), call.names["revision"])
    answers = []
    for file in call.json()["files"]:
        large = is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
        mode = {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        answers.append({"path": file["path"], **mode})
        if file["path"] in commit.files:
            entry = listed(file["path"], commit.files[file["path"]])
            answers[-1]["oid"] = entry.get("lfs", entry)["oid"]
    return as_json({"files": answers, "commitOid": commit.oid})


def batch(hub: Hub, call: Call) -> Answer:
    # The request does not say whether a pull request will follow, which everybody may open.
    pull = replace(call, query={"create_pr": "1"})
    repo, answers = find_repo(hub, pull, write=True), []
    for wanted in call.json()["objects"]:
        answers.append({"oid": wanted["oid"], "size": wanted["size"]})
        if wanted["oid"] not in repo.objects:
            upload = f"{hub.cdn}/upload/{call.names['repo']}/{wanted['oid']}"
            verify = f"{hub.url}/{call.names['repo']}.git/info/lfs/objects/verify"
            answers[-1]["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
    return as_json({"transfer": "basic", "objects": answers}, headers={"Content-Type": _LFS_TYPE})


def upload(hub: Hub, call: Call) -> Answer:
    oid = hashlib.sha256(call.body).hexdigest()
    if oid != call.names["oid"]:
        raise HubError(400, f"the object's SHA-256 is {oid}, not {call.names['oid']}")
    hub.repos[call.names["repo"]].objects[oid] = call.body
    return Answer()


def verify(hub: Hub, call: Call) -> Answer:
    wanted, objects = call.json(), hub.repos[call.names["repo"]].objects
    if len(objects.get(wanted["oid"], b"")) != wanted["size"]:
        raise HubError(404, f"object {wanted['oid']} was not uploaded")
    return as_json({})


def commit(hub: Hub, call: Call) -> Answer:
    repo, name = find_repo(hub, call, write=True), call.names["repo"]
    lines = [json.loads(line) for line in call.body.splitlines()]
    header, branch = lines[0]["value"], call.names["revision"]
    pull = call.query.get("create_pr") == "1"
    parent = find_commit(repo, branch)
    if wanted := header.get("parentCommit"):
        if pull:
            parent = find_commit(repo, wanted)
        elif not parent.oid.startswith(wanted):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
    if branch not in repo.branches:
        raise HubError(404, f"Invalid rev id: {branch}", code="RevisionNotFound")
    files = dict(parent.files)
    for line in lines[1:]:
        _apply(repo, files, line["key"], line["value"])
    number = 1 + sum(other.startswith("refs/pr/") for other in repo.branches)
    if pull:
        branch = f"refs/pr/{number}"
    oid = repo.commit(files, branch=branch, subject=header["summary"], parent=parent.oid)
    said = {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{name}/commit/{oid}"}
    if pull:
        said["pullRequestUrl"] = f"{hub.url}/{name}/discussions/{number}"
    return as_json({**said, "hookOutput": ""})


def _apply(repo: Repo, files: dict[str, bytes], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        try:
            data = base64.b64decode(value["content"], validate=True)
        except ValueError as error:
            raise HubError(400, f"{path} is not in base64: {error}") from error
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


def validate(hub: Hub, call: Call) -> Answer:
    """What the client asks about the header of each model card: nothing is found in it."""
    del hub, call
    return as_json({"errors": [], "warnings": []})

"""This file holds what every answer of a Hub on loopback is made of: the request, who may see what, and refusals."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.zoo.hub_state import Commit, Hub, Repo, blob_oid, is_large, pointer

__all__ = ["Answer", "Call", "HubError", "as_json", "find_commit", "find_repo", "listed"]


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
        # A header is one line of ASCII, and a name of a file may be anything.
        line = (
            message.encode("ascii", "backslashreplace")
            .decode()
            .replace("\n", " ")
            .replace("\r", " ")
        )
        named = {"X-Error-Message": line, **({"X-Error-Code": code} if code else {})}
        body = json.dumps({"error": message}).encode()
        self.answer = Answer(
            status, body, {"Content-Type": "application/json", **named, **(headers or {})}
        )


def as_json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    kind = {"Content-Type": "application/json"}
    return Answer(status, json.dumps(value).encode(), {**kind, **(headers or {})})


def find_repo(hub: Hub, call: Call, *, content: bool = False, write: bool = False) -> Repo:
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


def find_commit(repo: Repo, revision: str) -> Commit:
    commit = repo.find(revision or "main")
    if commit is None:
        raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
    return commit


def listed(path: str, data: bytes) -> dict[str, Any]:
    """How a file is listed."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    if not is_large(path, len(data), data):
        return entry | {"oid": blob_oid(data)}
    text = pointer(data)
    sha256 = hashlib.sha256(data).hexdigest()
    large = {"oid": sha256, "size": len(data), "pointerSize": len(text)}
    return entry | {"oid": blob_oid(text), "lfs": large}

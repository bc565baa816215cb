"""This file holds which answer of a Hub on loopback belongs to which request of the real client."""

import re
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import unquote

from tests.zoo import hub_reads, hub_writes
from tests.zoo.hub_answers import Answer, Call, HubError
from tests.zoo.hub_state import Hub

__all__ = ["answer"]

_Route = Callable[[Hub, Call], Answer]


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
                return route(hub, replace(call, names=names))
    raise HubError(404, f"no such page: {call.method} {call.path}")


def _routes(*rows: tuple[str, str, _Route]) -> list[tuple[str, re.Pattern[str], _Route]]:
    """Compile patterns in which {repo}, {revision}, {path}, {oid} and {name} stand for a name in the path."""
    parts = {
        # A name without an owner is well formed, and missing.
        "repo": "[^/]+(?:/[^/]+)?",
        "revision": "[^/]+",
        "path": ".+",
        "oid": "[0-9a-f]{64}",
        "name": "[^/]+",
    }
    groups = {part: f"(?P<{part}>{pattern})" for part, pattern in parts.items()}
    return [(method, re.compile(path.format(**groups)), route) for method, path, route in rows]


_ROUTES = _routes(
    ("GET", "/api/whoami-v2", hub_reads.whoami),
    ("GET", "/api/models/{repo}/tree/{revision}(?:/{path})?", hub_reads.tree),
    ("POST", "/api/models/{repo}/paths-info/{revision}", hub_reads.paths),
    ("GET", "/api/models/{repo}/refs", hub_reads.refs),
    ("GET", "/api/models/{repo}/commits/{revision}", hub_reads.commits),
    ("GET", "/api/models/{repo}/auth-check(?:/write)?", hub_reads.allowed),
    ("GET", "/api/models/{repo}(?:/revision/{revision})?", hub_reads.info),
    ("GET", "/{repo}/resolve/{revision}/{path}", hub_reads.resolve),
    ("GET", "/cdn/{repo}/{oid}/{path}", hub_reads.stored),
    ("POST", "/api/repos/create", hub_writes.create),
    ("DELETE", "/api/repos/delete", hub_writes.delete),
    ("POST", "/api/models/{repo}/(?P<kind>branch|tag)/{name}", hub_writes.point),
    ("POST", "/api/validate-yaml", hub_writes.validate),
    ("POST", "/api/models/{repo}/preupload/{revision}", hub_writes.preupload),
    ("POST", "/{repo}[.]git/info/lfs/objects/batch", hub_writes.batch),
    ("PUT", "/upload/{repo}/{oid}", hub_writes.upload),
    ("POST", "/{repo}[.]git/info/lfs/objects/verify", hub_writes.verify),
    ("POST", "/api/models/{repo}/commit/{revision}", hub_writes.commit),
)

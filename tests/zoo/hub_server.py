"""This file holds a Hub on loopback: enough of its interface for the real client to make a repository and commit."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

__all__ = ["Hub", "hub_server"]


@dataclass
class Hub:
    """What the server was told.

    Parameters
    ----------
    token : str
        The only token that may write.
    repos : dict of str to dict of str to bytes
        Files of every repository.
    commits : list of str
        Subjects of the commits, in order.
    refuse : int
        Status with which every commit is answered, if not 0.
    """

    token: str = "hf_secret"
    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    refuse: int = 0


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A server on a free port for as long as the block runs."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path).removeprefix("/api/")
        if self.headers.get("Authorization") != f"Bearer {self.state.token}":
            self._answer(401, {"error": "Invalid token"})
        elif path == "repos/create":
            self._create(json.loads(body))
        elif path == "validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        else:
            _, owner, name, verb, _ = path.split("/")
            files = self.state.repos.get(f"{owner}/{name}")
            if files is None:
                self._answer(404, {"error": "Repository not found"}, code="RepoNotFound")
            elif verb == "preupload":
                self._preupload(json.loads(body))
            else:
                self._commit(f"{owner}/{name}", files, body)

    def _create(self, wanted: dict[str, str]) -> None:
        repo = f"{wanted['organization']}/{wanted['name']}"
        exists = repo in self.state.repos
        self.state.repos.setdefault(repo, {})
        self._answer(409 if exists else 200, {"url": f"{self.state.url}/{repo}", "id": repo})

    def _preupload(self, wanted: dict[str, list[dict[str, str]]]) -> None:
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
            for file in wanted["files"]
        ]
        self._answer(200, {"files": files})

    def _commit(self, repo: str, files: dict[str, bytes], body: bytes) -> None:
        if self.state.refuse:
            self._answer(self.state.refuse, {"error": "not now"})
            return
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.state.commits.append(line["value"]["summary"])
            elif line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.state.url}/{repo}/commit/{len(self.state.commits):040x}"
        self._answer(200, {"commitUrl": url, "commitOid": url[-40:], "success": True})

    def _answer(self, status: int, value: object, *, code: str = "") -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        del format, args

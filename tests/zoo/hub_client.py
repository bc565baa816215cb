"""This file holds the real client of the Hub, made to know a Hub on loopback only, in the process of the tests."""

import importlib
import time
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import huggingface_hub.hf_api
import huggingface_hub.utils._cache_manager
import huggingface_hub.utils._http
import pytest

from tests.zoo.hub_server import environment
from tests.zoo.hub_state import Hub

__all__ = ["CHUNK", "HubClient"]

# Bytes; the client's own 10 MiB would make every test of a cut connection as large.
CHUNK = 4096

# The client reads its settings when it is imported, and modules of it keep some of them for themselves.
_constants = huggingface_hub.constants
_http = huggingface_hub.utils._http


@dataclass
class _Clock:
    """The module `time` for the client, by which it waits next to nothing and tells for how long it meant to."""

    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        time.sleep(min(seconds, 0.005))

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


@dataclass
class HubClient:
    """The client of this process while it knows `hub` only, and writes into `home` only, an empty folder.

    A request to any host but 127.0.0.1 is refused before it is made. The client's waits between retries are cut to
    milliseconds, by a `time` of its own in the two modules that wait; `slept` are the seconds that it meant to wait.
    """

    hub: Hub
    home: Path
    monkeypatch: pytest.MonkeyPatch
    slept: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        home, url = self.home, self.hub.url
        for name, value in environment(self.hub, home).items():
            self.monkeypatch.setenv(name, value)
        # These win over, or stand in for, some of the above.
        for name in ("ETAG_TIMEOUT", "DOWNLOAD_TIMEOUT"):
            self.monkeypatch.delenv(f"HF_HUB_{name}", raising=False)
        self.monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        self.monkeypatch.delenv("HF_DEBUG", raising=False)
        settings: dict[str, object] = {
            "ENDPOINT": url,
            "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_URL_HOSTS": _constants.HF_URL_HOSTS | {"127.0.0.1"},
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(self.cache),
            "HUGGINGFACE_HUB_CACHE": str(self.cache),
            "HF_ASSETS_CACHE": str(home / "assets"),
            "HF_XET_CACHE": str(home / "xet"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            # What the client writes at once, and so what a cut connection leaves it a multiple of.
            "DOWNLOAD_CHUNK_SIZE": CHUNK,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
            "HF_HUB_DISABLE_SHARED_BLOBS": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_XET": True,
        }
        for name, setting in settings.items():
            self.monkeypatch.setattr(_constants, name, setting)
        self.monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", url)
        manager = huggingface_hub.utils._cache_manager
        self.monkeypatch.setattr(manager, "HF_HUB_CACHE", str(self.cache))
        # The package gives the name of this module to a class.
        bars = importlib.import_module("huggingface_hub.utils.tqdm")
        self.monkeypatch.setattr(bars, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        clock = _Clock(self.slept)
        self.monkeypatch.setattr(_http, "time", clock)
        self.monkeypatch.setattr(huggingface_hub.file_download, "time", clock)
        self.monkeypatch.setattr(_http, "_GLOBAL_CLIENT_FACTORY", self._session)
        _http.close_session()

    @property
    def cache(self) -> Path:
        """Where the client keeps what it downloads."""
        return self.home / "hub"

    def set_token(self, token: str) -> None:
        """Log in by `token`, or log out if it is empty."""
        self.monkeypatch.setenv("HF_TOKEN", token)

    def set_offline(self, offline: bool = True) -> None:
        """Do as HF_HUB_OFFLINE does."""
        self.monkeypatch.setenv("HF_HUB_OFFLINE", "1" if offline else "0")
        self.monkeypatch.setattr(_constants, "HF_HUB_OFFLINE", offline)

    def _session(self) -> object:
        session = _http.default_client_factory()
        hooks = session.event_hooks
        session.event_hooks = {**hooks, "request": [*hooks["request"], _stay_on_loopback]}
        return session


def _stay_on_loopback(request: object) -> None:
    host = request.url.host  # type: ignore[attr-defined]  # of the client's own HTTP library
    if host != "127.0.0.1":
        raise AssertionError(f"the client asks {host}: tests ask a Hub on loopback only")

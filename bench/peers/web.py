"""This file holds the exported page at work: served by Python's own server, run in headless Chromium."""

import base64
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from bench.peers.chromium import Chromium, Page
from nanochat.errors import BackendError
from nanochat.export.web.write import RUNTIME
from nanochat.proof.parity import Rounding
from nanochat.proof.tolerances import TOLERANCES

__all__ = ["FileServer", "WebPage", "wait_for_model"]

_END_SECONDS = 10
_LOAD_SECONDS = 120.0
_RUN_SECONDS = 300.0


class FileServer:
    """``python -m http.server`` for a folder, until the end of its context; `url` is where it is."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
        self._process = subprocess.Popen(
            [*command, "--directory", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        if found is None:
            self.close()
            raise BackendError(f"python -m http.server says {line!r} where its address should be")
        self.url = found[0]

    def __enter__(self) -> "FileServer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server."""
        self._process.terminate()
        self._process.communicate(timeout=_END_SECONDS)


class WebPage:
    """An exported folder as a person's browser runs it, an `Artefact` until the end of its context.

    Parameters
    ----------
    folder : Path
        With ``nanochat.json``.
    query : str
        What to add to the page's address, such as ``?device=wasm&weights=2-bit``, which tries nothing else.

    Raises
    ------
    BackendError
        If there is no Chromium, or the page says that something went wrong.
    """

    tolerance = TOLERANCES["logits"].limit
    rounding: Rounding = "same"

    def __init__(self, folder: Path, *, query: str = "") -> None:
        with ExitStack() as stack:
            server = stack.enter_context(FileServer(folder))
            browser = stack.enter_context(Chromium())
            self._page = browser.open(server.url + query)
            wait_for_model(self._page)
            chosen = self._page.evaluate("nanochat.choice().name")
            self.runtime = f"{RUNTIME}, {browser.version}, {chosen}"
            self._stack = stack.pop_all()

    def __enter__(self) -> "WebPage":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See `nanochat.proof.parity.Artefact.logits`."""
        text = self._page.evaluate(f"nanochat.logits({_list(ids)})", seconds=_RUN_SECONDS)
        return np.frombuffer(base64.b64decode(text), np.float32).reshape(len(ids), -1)

    def greedy(self, ids: Sequence[int], *, num_tokens: int) -> list[int]:
        """See `nanochat.proof.parity.Artefact.greedy`."""
        call = f"nanochat.greedy({_list(ids)}, {num_tokens})"
        tokens: list[int] = self._page.evaluate(call, seconds=_RUN_SECONDS)["tokens"]
        return tokens


def wait_for_model(page: Page) -> None:
    """Return when the page has loaded its model.

    Raises
    ------
    BackendError
        If it shows an error, or nothing comes.
    """
    shown = "document.getElementById('{}')?.hidden === false"
    page.wait(f"{shown.format('work')} || {shown.format('error')}", seconds=_LOAD_SECONDS)
    if page.evaluate(shown.format("error")):
        raise BackendError(page.evaluate("document.getElementById('error').textContent"))


def _list(ids: Sequence[int]) -> str:
    return f"[{', '.join(map(str, ids))}]"

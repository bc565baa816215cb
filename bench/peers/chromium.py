"""This file holds headless Chromium, driven through the pipe of its DevTools protocol: no driver needs installing.

Messages are JSON texts, each ended by a zero byte, on the browser's file descriptors 3 and 4 [1]_. It resolves no name
of any other host than this one.

References
----------
.. [1] chromedevtools.github.io/devtools-protocol, and ``--remote-debugging-pipe`` in content/public/common/
   content_switches.cc of chromium.googlesource.com.
"""

import base64
import fcntl
import json
import os
import select
import signal
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from nanochat.errors import BackendError

__all__ = ["Chromium", "Page"]

_PROGRAM = Path("/usr/bin/chromium")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--remote-debugging-pipe",
)
# Descriptors that the browser's own, 3 and 4, cannot collide with.
_LOWEST_DESCRIPTOR = 10
_START_SECONDS = 30.0
_END_SECONDS = 10.0
_POLL_SECONDS = 0.02
_CHUNK_BYTES = 2**20
_SCHEMES = ("http:", "https:", "ws:", "wss:")
# Levels of what the browser's console shows.
_COMPLAINING = ("assert", "error", "warning")

_SHIFT = 8
# Keys by the names that events have, with their codes of Windows and what they type.
_KEYS = {
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "End": (35, ""),
    "Home": (36, ""),
    "ArrowLeft": (37, ""),
    "ArrowRight": (39, ""),
}

Message = dict[str, Any]


class _RefusedError(BackendError):
    """The browser could not do what it was told."""


class Chromium:
    """A browser with a new profile; use it as a context, at whose end it ends.

    Parameters
    ----------
    flags : iterable of str
        Further flags of its command line.

    Attributes
    ----------
    version : str
        Such as "Chromium 156".
    requests : list of str
        Addresses that its pages, their workers and service workers have asked for.

    Raises
    ------
    BackendError
        If there is no Chromium, or it does not start.
    """

    def __init__(self, *, flags: Iterable[str] = ()) -> None:
        if not _PROGRAM.exists():
            raise BackendError(
                f"{_PROGRAM} is not there, and pages are run in it: apt-get install chromium"
            )
        self.requests: list[str] = []
        self.problems: dict[str, list[str]] = {}
        self.complaints: dict[str, list[str]] = {}
        self._answers: dict[int, Message] = {}
        self._data = bytearray()
        self._number = 0
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self._log = Path(self._profile.name) / "stderr.txt"
        self._spawn([str(_PROGRAM), *_FLAGS, f"--user-data-dir={self._profile.name}", *flags])
        try:
            product = self.call("Browser.getVersion", seconds=_START_SECONDS)["product"]
            self.version = "Chromium " + product.partition("/")[2].partition(".")[0]
            self._attach_to_all(None)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def open(self, url: str, *, before: str = "", width: int = 1000, height: int = 800) -> "Page":
        """Load a page in a new tab of that many pixels; returns before it is loaded.

        Parameters
        ----------
        before : str
            A script to run before the page's own.
        """
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        page.resize(width, height)
        page.before(before)
        page.go(url)
        return page

    def close(self) -> None:
        """End the browser, and delete its profile."""
        os.close(self._to)
        os.close(self._from)
        end = time.monotonic() + _END_SECONDS
        while os.waitpid(self._process, os.WNOHANG)[0] == 0:
            if time.monotonic() > end:
                os.killpg(self._process, signal.SIGKILL)
                end += _END_SECONDS
            time.sleep(_POLL_SECONDS)
        self._profile.cleanup()

    def call(
        self, method: str, *, session: str | None = None, seconds: float = 60.0, **params: object
    ) -> Message:
        """Send a command of the protocol, and return its result.

        Raises
        ------
        BackendError
            If the browser refuses, has ended, or does not answer in that time.
        """
        number = self._send(method, session, params)
        end = time.monotonic() + seconds
        while number not in self._answers:
            self._receive(method, end)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise _RefusedError(f"Chromium refuses {method}: {answer['error']['message']}")
        result: Message = answer["result"]
        return result

    def _spawn(self, command: list[str]) -> None:
        (theirs_in, self._to), (self._from, theirs_out) = _pipe(), _pipe()
        null, write = os.devnull, os.O_WRONLY | os.O_CREAT
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, null, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, null, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, str(self._log), write, 0o600),
            (os.POSIX_SPAWN_DUP2, theirs_in, 3),
            (os.POSIX_SPAWN_DUP2, theirs_out, 4),
        ]
        self._process = os.posix_spawn(
            command[0], command, os.environ, file_actions=actions, setpgroup=0
        )
        os.close(theirs_in)
        os.close(theirs_out)

    def _send(self, method: str, session: str | None, params: dict[str, object]) -> int:
        self._number += 1
        message: Message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = memoryview(json.dumps(message).encode() + b"\0")
        try:
            while data:
                data = data[os.write(self._to, data) :]
        except BrokenPipeError as error:
            raise BackendError(f"Chromium has ended: {self._last_words()}") from error
        return self._number

    def _receive(self, method: str, end: float) -> None:
        ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            raise BackendError(f"Chromium has not answered {method}: {self._last_words()}")
        data = os.read(self._from, _CHUNK_BYTES)
        if not data:
            raise BackendError(f"Chromium ended before it answered {method}: {self._last_words()}")
        self._data += data
        *texts, self._data = self._data.split(b"\0")
        for text in texts:
            message = json.loads(text)
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._notice(message["method"], message["params"], message.get("sessionId"))

    def _notice(self, event: str, params: Message, session: str | None) -> None:
        match event:
            case "Target.attachedToTarget":
                inner = params["sessionId"]
                self._send("Network.enable", inner, {})
                self._attach_to_all(inner)
                self._send("Runtime.runIfWaitingForDebugger", inner, {})
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                # Not those of the browser's own pages, nor data in the address.
                if url.startswith(_SCHEMES) and url not in self.requests:
                    self.requests.append(url)
            case "Runtime.exceptionThrown" if session is not None:
                details = params["exceptionDetails"]
                self.problems.setdefault(session, []).append(_reason(details))
            case "Log.entryAdded" if session is not None:
                entry = params["entry"]
                if entry["level"] in _COMPLAINING:
                    words = f"{entry['text']} {entry.get('url', '')}"
                    self.complaints.setdefault(session, []).append(words)
            case "Runtime.consoleAPICalled" if session is not None:
                if params["type"] in _COMPLAINING:
                    words = " ".join(str(each.get("value")) for each in params["args"])
                    self.complaints.setdefault(session, []).append(words)

    def _attach_to_all(self, session: str | None) -> None:
        # They wait, so that none of their requests is missed.
        options = {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}
        self._send("Target.setAutoAttach", session, dict(options))

    def _last_words(self) -> str:
        words = self._log.read_text(errors="replace") if self._log.exists() else ""
        return words.strip()[-500:] or "it said nothing"


class Page:
    """A tab of the browser."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session
        self._call("Page.enable")
        self._call("Runtime.enable")
        self._call("Log.enable")

    @property
    def problems(self) -> list[str]:
        """Errors that nothing on the page has caught."""
        return self._browser.problems.get(self._session, [])

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of the browser's console: of scripts, of policies, of what could not be fetched."""
        return self._browser.complaints.get(self._session, [])

    def go(self, url: str) -> None:
        """Load another page in this tab."""
        self._call("Page.navigate", url=url)

    def reload(self) -> None:
        """Load this tab's page anew."""
        self._call("Page.reload")

    def before(self, script: str) -> None:
        """Run a script in this tab before those of each page that is loaded from here on."""
        self._call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def resize(self, width: int, height: int) -> None:
        """Give the tab that many pixels."""
        size = {"width": width, "height": height}
        self._call("Emulation.setDeviceMetricsOverride", deviceScaleFactor=1, mobile=False, **size)

    def prefer(self, scheme: str) -> None:
        """Let the person at the screen prefer "light" or "dark" colours."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._call("Emulation.setEmulatedMedia", features=[feature])

    def evaluate(self, expression: str, *, seconds: float = 60.0) -> Any:
        """Value of a JavaScript expression; if it is a promise, what it comes to.

        Raises
        ------
        BackendError
            If it throws, or takes longer.
        """
        answer = self._call(
            "Runtime.evaluate",
            seconds=seconds,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in answer:
            raise BackendError(f"the page says: {_reason(answer['exceptionDetails'])}")
        return answer["result"].get("value")

    def wait(self, expression: str, *, seconds: float = 30.0) -> None:
        """Return when a JavaScript expression is true, perhaps after the page has loaded itself anew.

        Raises
        ------
        BackendError
            If it is not, in that time.
        """
        end = time.monotonic() + seconds
        while not self._holds(expression):
            if time.monotonic() > end:
                text = self.evaluate("document.body.innerText")
                raise BackendError(
                    f"{expression} is not so after {seconds:.0f} s; {self.problems}; the page shows {text!r:.1000}"
                )
            time.sleep(_POLL_SECONDS)

    def insert(self, text: str) -> None:
        """Type a text where the focus is."""
        self._call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key such as "Enter", "Tab" or "ArrowLeft", and release it."""
        code, text = _KEYS[key]
        for kind, typed in (("keyDown", text), ("keyUp", "")):
            self._call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                text=typed,
                windowsVirtualKeyCode=code,
                modifiers=_SHIFT if shift else 0,
            )

    def point(self, x: float, y: float) -> None:
        """Move the pointer there."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def names(self) -> list[tuple[str, str]]:
        """Role and name of each thing on the page, as screen readers get them."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    def close(self) -> None:
        """Close the tab."""
        self._call("Page.close")

    def screenshot(self) -> bytes:
        """What can be seen, as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _holds(self, expression: str) -> bool:
        try:
            answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        except _RefusedError:
            # The page went while it was asked: the next one is asked again.
            return False
        return "exceptionDetails" not in answer and answer["result"].get("value") is True

    def _call(self, method: str, *, seconds: float = 60.0, **params: object) -> Message:
        return self._browser.call(method, session=self._session, seconds=seconds, **params)


def _pipe() -> tuple[int, int]:
    """A pipe's ends, with numbers high enough."""
    ends = []
    for low in os.pipe():
        ends.append(fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _LOWEST_DESCRIPTOR))
        os.close(low)
    return ends[0], ends[1]


def _reason(details: Message) -> str:
    thrown = details.get("exception", {})
    return str(thrown.get("description") or thrown.get("value") or details.get("text"))

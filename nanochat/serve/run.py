"""This file holds a server at work: it listens, loads its models, says what runs, and ends without losing an answer."""

import asyncio
import contextlib
import errno
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Generator, Sequence

import uvicorn

from nanochat import __version__
from nanochat.errors import InputError, counted
from nanochat.serve.api.errors import ApiError
from nanochat.serve.app import Server, application
from nanochat.serve.engine import EngineEndedError
from nanochat.serve.keys import Keys
from nanochat.serve.loading import ToServe, load_models
from nanochat.serve.metrics import Metrics
from nanochat.serve.notify import notify
from nanochat.serve.protocol import limited_protocol
from nanochat.serve.settings import Settings
from nanochat.serve.traces import open_traces

__all__ = ["serve"]

_SHUTTING_DOWN = ApiError(503, "the server is ending", type="server_error", code="shutting_down")
# What another port may help against.
_OF_PORTS = (errno.EADDRINUSE, errno.EACCES)
# How often it looks whether what it waits for has ended.
_LOOK_SECONDS = 0.05
# For what is left when all answers have ended: bytes that have not been sent, and engines.
_CLOSE_SECONDS = 5.0


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to `_Run`: they are not the server's end, but the beginning of it."""
        yield


def serve(settings: Settings, models: Sequence[ToServe], say: Callable[[str], None]) -> None:
    """Serve models until a signal ends it.

    Parameters
    ----------
    say : callable
        Takes lines for people.

    Raises
    ------
    InputError
        If the port is in use, or keys or the certificate cannot be read.
    NanochatError
        If a model cannot be loaded.
    """
    keys = None if settings.api_key_file is None else Keys.read(settings.api_key_file)
    one = _Run(settings, models, keys, say)
    _load_certificate(one.config, settings)
    listener = _listen(settings)
    # That of uvloop, where it is installed.
    runner = asyncio.Runner(loop_factory=one.config.get_loop_factory())
    with runner, listener:
        runner.run(one.run(listener))


def _load_certificate(config: uvicorn.Config, settings: Settings) -> None:
    """Read the certificate, before anybody waits for a model."""
    for flag, path in (("--ssl-cert", settings.ssl_cert), ("--ssl-key", settings.ssl_key)):
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            raise InputError(
                f"{flag} {path}: {error.strerror}: pass a file in PEM that this user may read"
            ) from error
    try:
        config.load()
    except ssl.SSLError as error:
        raise InputError(
            f"--ssl-cert {settings.ssl_cert} with --ssl-key {settings.ssl_key}: {error.reason or error}: pass a "
            "certificate in PEM, and the private key that belongs to it"
        ) from error


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if sys.platform != "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    # A name may have characters that no name has.
    except (OSError, UnicodeError) as error:
        listener.close()
        advice = "pass a --host that is an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them"
        if isinstance(error, OSError) and error.errno in _OF_PORTS:
            advice = "pass another --port, or 0 for any that is free, or end what listens there"
        raise InputError(
            f"cannot listen on {settings.host}, port {settings.port} "
            f"({getattr(error, 'strerror', None) or error}): {advice}"
        ) from error
    return listener


class _Run:
    """One life of a server."""

    def __init__(
        self,
        settings: Settings,
        models: Sequence[ToServe],
        keys: Keys | None,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._models = models
        self._say = say
        metrics = Metrics(version=__version__)
        self._server = Server(settings=settings, metrics=metrics, keys=keys, traces=open_traces())
        self.config = uvicorn.Config(
            application(self._server),
            http=limited_protocol(settings.max_connections),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            root_path=settings.root_path,
            timeout_keep_alive=60,
            ssl_certfile=settings.ssl_cert,
            ssl_keyfile=settings.ssl_key,
        )
        self._signalled = asyncio.Event()
        self._is_impatient = False
        # Until when answers may be written.
        self._drained = 0.0

    async def run(self, listener: socket.socket) -> None:
        self._take_signals()
        web = _Uvicorn(self.config)
        serving = asyncio.create_task(web.serve([listener]))
        ended = asyncio.create_task(self._signalled.wait())
        died = asyncio.create_task(self._server.engine_died.wait())
        loading = asyncio.create_task(load_models(self._server, self._models, self._say))
        try:
            await asyncio.wait((serving, loading, ended), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                await loading
                self._server.phase = "ready"
                scheme = "http" if self._settings.ssl_cert is None else "https"
                host, port = listener.getsockname()[:2]
                notify("READY=1")
                self._say(f"ready: {scheme}://{f'[{host}]' if ':' in host else host}:{port}/v1")
                await asyncio.wait((serving, ended, died), return_when=asyncio.FIRST_COMPLETED)
            await self._drain()
        finally:
            loading.cancel()
            ended.cancel()
            died.cancel()
            await self._close(web, serving)
            await self._stop(loading)
            if self._server.traces is not None:
                self._server.traces.close()
        if self._server.engine_died.is_set():
            # Its exit code lets whoever watches over this process start another.
            raise EngineEndedError("an engine has died, as the log says: start the server again")

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def take() -> None:
            self._is_impatient = self._signalled.is_set()
            self._signalled.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            if sys.platform == "win32":
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(take))
            else:
                loop.add_signal_handler(number, take)

    async def _until(self, is_over: Callable[[], bool], seconds: float) -> bool:
        """Wait until something is over, but only for so long, and not after a second signal; whether it is."""
        end = time.monotonic() + seconds
        while not (found := is_over()) and not self._is_impatient and time.monotonic() < end:
            await asyncio.sleep(_LOOK_SECONDS)
        return found

    async def _drain(self) -> None:
        """Let balancers notice, who may ask until then; then texts end, and whoever is not done in time is told so."""
        notify("STOPPING=1")
        open_answers = [served.engine.open for served in set(self._server.models.values())]
        count = sum(map(len, open_answers))
        self._say(f"ending, once {counted(count, 'answer')} have ended" if count else "ending")
        if self._server.phase == "ready":
            self._server.phase = "leaving"
            await self._until(lambda: False, self._settings.drain_delay)
        self._server.phase = "draining"
        self._drained = time.monotonic() + self._settings.drain_timeout
        await self._until(lambda: not any(open_answers), self._settings.drain_timeout)
        for answers in open_answers:
            for answer in list(answers):
                answer.cancel(_SHUTTING_DOWN)
        # One turn for the last words of streams.
        await asyncio.sleep(_LOOK_SECONDS)

    async def _close(self, web: uvicorn.Server, serving: asyncio.Task[None]) -> None:
        """Let responses be sent to their ends, and break off those that their clients do not take."""
        web.should_exit = True
        await self._until(serving.done, max(self._drained - time.monotonic(), _CLOSE_SECONDS))
        while not serving.done():
            for connection in list(web.server_state.connections):
                connection.transport.abort()
            # Whoever answers there has this time to tidy up.
            await asyncio.sleep(_LOOK_SECONDS)
            web.force_exit = True
        await serving

    async def _stop(self, loading: asyncio.Task[None]) -> None:
        """Let engines end, each after its step, or after a model that is being loaded; none is waited for for ever."""
        engines = {served.engine for served in self._server.models.values()}
        stopping = {loading, *(asyncio.create_task(engine.stop()) for engine in engines)}
        # One turn for those that have nothing to do.
        await asyncio.sleep(_LOOK_SECONDS)
        if not await self._until(lambda: all(task.done() for task in stopping), _CLOSE_SECONDS):
            self._say("ended without waiting for an engine that is still busy")

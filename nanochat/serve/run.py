"""This file holds a server at work: it listens, loads its models, says what runs, and ends without losing an answer."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Generator, Sequence

import uvicorn

from nanochat import __version__
from nanochat.errors import InputError, counted
from nanochat.serve.api.errors import ApiError
from nanochat.serve.app import Server, application
from nanochat.serve.keys import Keys
from nanochat.serve.loading import ToServe, load_models
from nanochat.serve.metrics import Metrics
from nanochat.serve.notify import notify
from nanochat.serve.protocol import limited_protocol
from nanochat.serve.settings import Settings
from nanochat.serve.traces import open_traces

__all__ = ["serve"]

_SHUTTING_DOWN = ApiError(503, "the server is ending", type="server_error", code="shutting_down")
# How often it looks whether all answers have ended.
_LOOK_SECONDS = 0.05


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
        If the port is in use, or the keys cannot be read.
    NanochatError
        If a model cannot be loaded.
    """
    keys = None if settings.api_key_file is None else Keys.read(settings.api_key_file)
    listener = _listen(settings)
    # That of uvloop, where it is installed.
    factory = uvicorn.Config("", loop="auto", log_config=None).get_loop_factory()
    runner = asyncio.Runner(loop_factory=factory)
    with runner, listener:
        runner.run(_Run(settings, models, keys, say).run(listener))


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if sys.platform != "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen on {settings.host}, port {settings.port} ({error.strerror}): pass another --port, or 0 for "
            "any that is free, or end what listens there"
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
        self._signalled = asyncio.Event()
        self._is_impatient = asyncio.Event()

    async def run(self, listener: socket.socket) -> None:
        self._take_signals()
        settings = self._settings
        config = uvicorn.Config(
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
        web = _Uvicorn(config)
        serving = asyncio.create_task(web.serve([listener]))
        ended = asyncio.create_task(self._signalled.wait())
        loading = asyncio.create_task(load_models(self._server, self._models, self._say))
        try:
            await asyncio.wait((serving, loading, ended), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                await loading
                self._server.phase = "ready"
                scheme = "http" if settings.ssl_cert is None else "https"
                host, port = listener.getsockname()[:2]
                notify("READY=1")
                self._say(f"ready: {scheme}://{f'[{host}]' if ':' in host else host}:{port}/v1")
                await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
            self._server.phase = "draining"
            await self._drain()
        finally:
            loading.cancel()
            ended.cancel()
            web.should_exit = True
            web.force_exit = self._is_impatient.is_set()
            await serving
            for served in self._server.models.values():
                served.engine.stop()
            if self._server.traces is not None:
                self._server.traces.close()

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def take() -> None:
            (self._is_impatient if self._signalled.is_set() else self._signalled).set()

        for number in (signal.SIGINT, signal.SIGTERM):
            if sys.platform == "win32":
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(take))
            else:
                loop.add_signal_handler(number, take)

    async def _drain(self) -> None:
        """Let balancers notice, then texts end; whoever is not done in time is told so."""
        notify("STOPPING=1")
        impatient = asyncio.create_task(self._is_impatient.wait())
        open_answers = [served.engine.open for served in set(self._server.models.values())]
        count = sum(map(len, open_answers))
        self._say(f"ending, once {counted(count, 'answer')} have ended" if count else "ending")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_delay):
                await asyncio.shield(impatient)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout):
                while any(open_answers) and not impatient.done():
                    await asyncio.sleep(_LOOK_SECONDS)
        for answers in open_answers:
            for answer in list(answers):
                answer.cancel(_SHUTTING_DOWN)
        impatient.cancel()
        # One turn for the last words of streams.
        await asyncio.sleep(_LOOK_SECONDS)

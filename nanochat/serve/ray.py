"""This file holds the server as a deployment of Ray Serve: replicas on machines, which come, go and are renewed.

``serve run nanochat.serve.ray:app model=nanochat-tiny replicas=2 threads=8`` starts it. Ray listens, balances and
scales; what a replica answers is what `nanochat serve` answers.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from nanochat import __version__
from nanochat.errors import InputError
from nanochat.serve.app import Server, application
from nanochat.serve.keys import Keys
from nanochat.serve.loading import ToServe, load_models
from nanochat.serve.metrics import Metrics
from nanochat.serve.options import serve_options
from nanochat.serve.settings import Settings
from nanochat.serve.traces import open_traces

__all__ = ["app"]

_LOGGER = logging.getLogger("nanochat.serve")
# What the configuration of Ray says in their place.
_OF_RAY = ("drain_delay", "host", "max_connections", "port", "ssl_cert", "ssl_key", "workers")
# Texts for which a replica has rows, where nobody says how many; see `nanochat.serve.room`.
_ROWS = 32


class _Replica:
    """A server without sockets; Ray calls the methods."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, settings: Settings, models: Sequence[ToServe], keys: Keys | None
    ) -> None:
        _log_to_stderr()
        metrics = Metrics(version=__version__)
        self._server = Server(settings=settings, metrics=metrics, keys=keys, traces=open_traces())
        # Requests come once this has returned.
        await load_models(self._server, models, _LOGGER.info)
        self._server.phase = "ready"

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return application(self._server)

    async def __del__(self) -> None:
        """End what runs beside requests; Ray awaits it when the replica has answered all of them."""
        for engine in {served.engine for served in self._server.models.values()}:
            await engine.stop()
        if self._server.traces is not None:
            self._server.traces.close()

    def check_health(self) -> None:
        """Raise what ails it: then Ray ends it, and starts another."""
        self._server.require_health()


def app(given: dict[str, Any]) -> Application:
    """The deployment that Ray Serve runs.

    Parameters
    ----------
    given : dict
        Options of `nanochat serve` by their names, over those of the environment
        (``NANOCHAT_SERVE_MAX_ROWS=16``); and `replicas`, how many, or the least and the most as in "1-4".

    Raises
    ------
    InputError
        If one is unknown or wrong.
    """
    given = dict(given)
    least, most = _range(str(given.pop("replicas", 1)))
    options = serve_options(given, ignored=_OF_RAY)
    settings = options.settings
    if most > 1 and options.threads is None:
        raise InputError(
            f"replicas={most} and no number of threads, so that each would take all cores of a machine: pass threads=N"
        )
    rows = settings.max_rows or _ROWS
    scale: dict[str, Any] = (
        {"num_replicas": least}
        if least == most
        else {
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": most,
                # Half of the rows are left for those who come while another replica starts.
                "target_ongoing_requests": max(rows // 2, 1),
            }
        }
    )
    keys = None if settings.api_key_file is None else Keys.read(settings.api_key_file)
    deployment = serve.deployment(
        serve.ingress()(_Replica),
        name="nanochat",
        # What is more than that waits in Ray; the replica would refuse it.
        max_ongoing_requests=rows + settings.queue,
        graceful_shutdown_timeout_s=settings.drain_timeout,
        ray_actor_options={"num_cpus": options.threads or 1},
        **scale,
    )
    return deployment.bind(settings, options.models, keys)


def _range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    least, most = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
    if not 0 < least <= most:
        raise InputError(
            f"replicas={text!r:.80}: pass a number, or the least and the most as in 1-4"
        )
    return least, most


def _log_to_stderr() -> None:
    """Let lines of requests into the logs that Ray keeps of each process."""
    logger = logging.getLogger("nanochat")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)

"""This file holds whether requests are traced: where OpenTelemetry is installed, and told where to send spans."""

import logging
import os
from importlib.util import find_spec
from typing import Protocol

from nanochat.errors import how_to_install
from nanochat.serve.guard import Ended

__all__ = ["Traces", "open_traces"]

_LOGGER = logging.getLogger(__name__)
# Of OpenTelemetry's own; either is enough, and its exporter reads all the others.
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


class Traces(Protocol):
    """Whoever is told of requests that have ended."""

    def ended(self, request: Ended) -> None:
        """Note a request."""
        ...

    def close(self) -> None:
        """Send what has not been sent, for a few seconds at most."""
        ...


def open_traces() -> Traces | None:
    """Traces that are sent, if the environment says where; a warning if they cannot be."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    if not all(map(_is_installed, _PACKAGES)):
        _LOGGER.warning(
            "no traces are sent: OpenTelemetry must be installed: %s", how_to_install("otel")
        )
        return None
    # Nobody else shall wait for it.
    from nanochat.serve.spans import Spans

    return Spans.sent()


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False

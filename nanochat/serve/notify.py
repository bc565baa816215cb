"""This file holds how a server tells who has started it that it is ready, or ending; see sd_notify(3)."""

import contextlib
import os
import socket

__all__ = ["VARIABLE", "notify"]

# Names that begin with @ are not in the file system.
VARIABLE = "NOTIFY_SOCKET"


def notify(state: str) -> None:
    """Tell systemd, or the parent of a worker, if it asks to be told."""
    path = os.environ.get(VARIABLE, "")
    if not path or not hasattr(socket, "AF_UNIX"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.sendto(state.encode(), path.replace("@", "\0", 1) if path[0] == "@" else path)

"""This file holds what stands between jobs and this machine: which layers there are, and which of them hold.

A layer is believed when the canary (:mod:`nanochat.sandbox.canary`) has failed behind it.
"""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from nanochat.errors import SandboxError
from nanochat.sandbox import bubblewrap, landlock, seatbelt, seccomp
from nanochat.sandbox.canary import ATTEMPTS, canary
from nanochat.sandbox.child import Layers
from nanochat.sandbox.job import Job, Outcome

__all__ = ["KINDS", "Kind", "Runner", "choose", "escapes", "layers_of"]

Kind = Literal["auto", "bubblewrap", "landlock", "seatbelt", "none"]
KINDS: tuple[Kind, ...] = ("auto", "bubblewrap", "landlock", "seatbelt", "none")
Runner = Callable[[Job, Layers], Outcome]

_BARE = "; give --sandbox none to run programs with nothing between them and this machine"


def layers_of(kind: Kind, folder: str) -> Layers:
    """All layers of a kind of sandbox that this machine has.

    Parameters
    ----------
    kind : "bubblewrap", "landlock", "seatbelt" or "none"
        What the others are put around.
    folder : str
        Where the launcher of :mod:`nanochat.sandbox.bubblewrap` is written.

    Raises
    ------
    SandboxError
        If what the kind needs is not here.
    """
    if kind == "none":
        return Layers()
    if kind == "seatbelt":
        if sys.platform != "darwin" or not os.access(seatbelt.PROGRAM, os.X_OK):
            raise SandboxError(f"there is no {seatbelt.PROGRAM}, which is a part of macOS")
        return Layers(seatbelt=True)
    if seccomp.architecture() is None:
        raise SandboxError(
            f"no filter of system calls is written for {os.uname().sysname} on {os.uname().machine}: "
            "use Linux on x86-64 or aarch64, or macOS"
        )
    version = landlock.abi()
    rules = version >= landlock.MINIMUM_ABI
    if kind == "landlock":
        if not rules:
            raise SandboxError(_no_landlock(version))
        return Layers(landlock=True, seccomp=True)
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxError(
            "there is no bwrap on the PATH: apt install bubblewrap, or your system's package of it"
        )
    launcher = _write_launcher(folder) if rules else ""
    return Layers(
        bubblewrap=os.path.realpath(program),
        launcher=launcher,
        landlock=bool(launcher),
        seccomp=True,
    )


def _no_landlock(version: int) -> str:
    if version:
        return f"this kernel's Landlock is version {version}, and 3 is needed: Linux 6.2 or newer"
    return (
        "this kernel offers no Landlock: it is in Linux 6.2 or newer, if 'landlock' is among what "
        "/sys/kernel/security/lsm lists (else add it to lsm= on the kernel's command line)"
    )


def _write_launcher(folder: str) -> str:
    program = bubblewrap.launcher_program()
    if program is None:
        return ""
    path = Path(folder, "launcher")
    path.write_bytes(program)
    path.chmod(0o755)
    return str(path)


def choose(kind: Kind, folder: str, run: Runner) -> tuple[Kind, Layers]:
    """The layers of the sandbox that is wanted, tried on this machine; of "auto", the first that holds.

    Raises
    ------
    SandboxError
        If none holds: what is missing, and what would mend it.
    """
    kinds: tuple[Kind, ...] = ("bubblewrap", "landlock", "seatbelt") if kind == "auto" else (kind,)
    reasons = []
    for name in kinds:
        try:
            layers = layers_of(name, folder)
            if name != "none":
                _require(layers, run)
        except SandboxError as error:
            if kind != "auto":
                raise
            reasons.append(f"{name}: {error}")
        else:
            return name, layers
    raise SandboxError("no sandbox works here: " + "; ".join(reasons) + _BARE)


def _require(layers: Layers, run: Runner) -> None:
    escaped = escapes(layers, run)
    if escaped:
        raise SandboxError(f"a program behind it could {', '.join(escaped)}, so it is not used")


def escapes(layers: Layers, run: Runner) -> tuple[str, ...]:
    """What a job can do behind these layers although it should not: some of :data:`nanochat.sandbox.canary.ATTEMPTS`.

    Raises
    ------
    SandboxError
        If a job cannot be run behind them at all.
    """
    with (
        tempfile.TemporaryDirectory(prefix="nanochat-canary-") as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        secret = Path(folder, "secret")
        secret.write_text("secret", encoding="utf-8")
        port = server.getsockname()[1]
        outcome = run(
            canary(secret=str(secret), folder=folder, port=port, process=os.getpid()), layers
        )
    lines = outcome.output.decode().splitlines()
    if lines[-1:] != ["done"]:
        raise SandboxError(_why_not(outcome))
    return tuple(name for name in ATTEMPTS if name in lines)


def _why_not(outcome: Outcome) -> str:
    said = outcome.detail or outcome.errors.decode(errors="replace").strip().rpartition("\n")[2]
    for part, advice in _ADVICE.items():
        if part in said:
            return f"{said}: {advice}"
    return said or f"a trial ended with {outcome.ending} {outcome.status}"


_APPARMOR = (
    "this system lets no ordinary program make user namespaces; on Ubuntu, allow bwrap by a profile of AppArmor "
    "(package apparmor-profiles), or all by sysctl kernel.apparmor_restrict_unprivileged_userns=0"
)
_DOCKER = "in a container of Docker, start it with --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
# What bubblewrap says where it may not make namespaces, or use them, and what allows them; the first that fits.
_ADVICE: Mapping[str, str] = {
    "uid map": _APPARMOR,
    # Namespaces are made, but without any capability in them.
    "loopback": _APPARMOR,
    "exceeded": "so many namespaces are not allowed here: set sysctl user.max_user_namespaces to some thousands",
    "namespace": f"namespaces are forbidden here; {_DOCKER}, and on Debian set sysctl "
    "kernel.unprivileged_userns_clone=1",
    "make / slave": f"mounts are forbidden here; {_DOCKER}",
    "pivot_root": f"mounts are forbidden here; {_DOCKER}",
    "Unknown option": "this bubblewrap is too old: install a newer one",
}

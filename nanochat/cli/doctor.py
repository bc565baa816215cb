"""This file holds `nanochat doctor`: what this machine is, what can run on it, and what would be chosen."""

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from nanochat import __version__
from nanochat.cli.options import as_json_option
from nanochat.cli.output import format_bytes, note, print_json, print_table, write
from nanochat.errors import BackendError, NanochatError, counted

if TYPE_CHECKING:
    from nanochat.backends.numba.report import KernelReport
    from nanochat.backends.numba.tuning.bandwidth import Bandwidth

__all__ = ["doctor", "measured_bandwidth"]

_PACKAGES = "numpy numba torch triton mlx onnxruntime gguf tokenizers huggingface-hub"
# What a processor needs for fast integer products, in the words of /proc/cpuinfo, oldest first.
_INSTRUCTIONS = "avx2 avx512bw avx512_vnni avx_vnni amx_int8 asimd asimddp i8mm sve"
_EXAMPLES = """\b
Examples:
  nanochat doctor
  NANOCHAT_BACKEND=numba nanochat doctor
"""


class _Finding(NamedTuple):
    name: str
    ready: bool
    detail: str


@click.command(epilog=_EXAMPLES)
@as_json_option
def doctor(*, as_json: bool) -> None:
    """Show this machine, which backends can run on it and why others cannot, and what auto chooses.

    Programs that models write are judged by a Rust compiler, in one of the sandboxes that hold here.

    How fast it reads memory is measured, for a second, and remembered: `nanochat models show` tells by it how fast a
    model will be.

    The exit code is 1 if nothing can be chosen.
    """
    from nanochat import backends
    from nanochat.sandbox.survey import survey

    machine, packages, environment = _machine(), _versions(), _environment()
    found = [_try(name) for name in backends.BACKENDS]
    kernels = _kernels() if any(b.name == "numba" and b.ready for b in found) else None
    bandwidth = None if kernels is None else measured_bandwidth(anew=True)
    try:
        chosen, reason = backends.choose("auto")
    except BackendError as error:
        chosen, reason = "", str(error)
    advice = _advice(chosen, reason) if any(b.name == chosen and b.ready for b in found) else ()
    sandboxes, compiler = survey(), _compiler()
    if as_json:
        print_json(
            {
                "machine": machine,
                "packages": packages,
                "environment": environment,
                "backends": [backend._asdict() for backend in found],
                "numba": None if kernels is None else asdict(kernels),
                "bandwidth": None if bandwidth is None else asdict(bandwidth),
                "sandboxes": [sandbox._asdict() for sandbox in sandboxes],
                "rustc": compiler._asdict(),
                "auto": {"backend": chosen or None, "reason": reason},
                "faster": advice,
            }
        )
    else:
        for table in filter(None, (machine, packages, environment)):
            print_table(list(table.items()))
            write("\n")
        rows = [(b.name, "ready" if b.ready else "no", b.detail) for b in found]
        print_table(rows, header=("backend", "here", "device, or the reason and what to do"))
        if kernels is not None:
            write("\n")
            print_table([*_rows(kernels), *_speeds(bandwidth)])
        write("\n")
        rows = [(s.name, "holds" if s.ready else "no", s.detail) for s in sandboxes]
        rows.append((compiler.name, "ready" if compiler.ready else "no", compiler.detail))
        print_table(
            rows, header=("to judge", "here", "layers of a sandbox, or the reason and what to do")
        )
        write(f"\nauto is {chosen or 'no backend'}: {reason}\n")
        for text in advice:
            write(f"to use more of this machine: {text}\n")
    if not chosen:
        raise click.exceptions.Exit(1)


def _try(name: str) -> _Finding:
    from nanochat import backends

    reason = backends.unavailable(name)
    if reason is not None:
        return _Finding(name, False, reason)
    device = "cpu, for .onnx files, or a model that is exported to one when it is loaded"
    try:
        if name not in backends.graphs():
            device = backends.get(name).device
    except NanochatError as error:
        return _Finding(name, False, str(error))
    # A broken installation may raise anything, and to say so is what this verb is for.
    except Exception as error:
        text = (
            f"it is installed, but does not start ({type(error).__name__}: {error}): reinstall it"
        )
        return _Finding(name, False, " ".join(text.split()))
    return _Finding(name, True, device)


def _compiler() -> _Finding:
    """What compiles the programs of models."""
    from nanochat.rust.toolchain import find_toolchain

    try:
        return _Finding("rustc", True, find_toolchain().version)
    except BackendError as error:
        return _Finding("rustc", False, str(error))


def _advice(name: str, reason: str) -> tuple[str, ...]:
    from nanochat import backends
    from nanochat.backends.describe import describe, faster

    graph = {"backend": name, "device": "cpu"}
    return faster(
        graph if name in backends.graphs() else describe(backends.get(name)), reason=reason
    )


def _kernels() -> "KernelReport | None":
    from nanochat.backends.numba.report import report

    try:
        return report()
    except NanochatError as error:
        note(f"warning: {error}")
    return None


def measured_bandwidth(*, anew: bool = False) -> "Bandwidth | None":
    """How fast this machine reads memory, measured now if it was not before; `None` where there is no room for that."""
    from nanochat.backends.numba.tuning.bandwidth import BYTES, known, measure
    from nanochat.memory import free_bytes

    found = None if anew else known()
    if found is not None:
        return found
    free = free_bytes()
    if free is not None and free < 4 * BYTES:
        note(f"how fast memory is was not measured: that takes {format_bytes(BYTES)} of it")
        return known()
    return measure()


def _speeds(bandwidth: "Bandwidth | None") -> list[tuple[str, str]]:
    if bandwidth is None:
        return [("memory bandwidth", "unknown")]
    read, weights = (f"{format_bytes(speed)}/s" for speed in (bandwidth.read, bandwidth.weights))
    threads = counted(bandwidth.threads, "thread")
    looking = f"attention at {bandwidth.attention / 1e9:.0f} GFLOPS"
    speed = f"{read} read by {threads}; ternary weights at {weights}; {looking}"
    return [("memory bandwidth", speed)]


def _rows(kernels: "KernelReport") -> list[tuple[str, str]]:
    others = [isa for isa in kernels.available if isa != kernels.isa]
    also = f"; also here: {', '.join(others)}" if others else ""
    writable = "" if kernels.kernels_writable else ", which cannot be written"
    answers = f"{kernels.num_choices} measured products in {kernels.choices}"
    return [
        ("numba kernels", f"{kernels.isa}{also}"),
        ("threads", f"{kernels.threads}, {kernels.call_microseconds:.1f} microseconds a call"),
        *([("", kernels.warning)] if kernels.warning else []),
        ("kv-cache float16", "yes" if kernels.float16 else "no: the processor lacks F16C"),
        ("huge pages", kernels.huge_pages),
        ("memory nodes", str(kernels.memory_nodes)),
        (
            "compiled code",
            f"in {kernels.kernels}{writable}"
            if kernels.kernels
            else "kept nowhere: set NUMBA_CACHE_DIR to a folder that can be written",
        ),
        ("nanochat tune", answers if kernels.tuning else "switched off by NANOCHAT_TUNE"),
    ]


def _machine() -> Mapping[str, object]:
    from nanochat.backends.host import processor

    cpuinfo = _read("/proc/cpuinfo")
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    has = set(flags[1].split()) if flags else set()
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "nanochat": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "instructions": " ".join(name for name in _INSTRUCTIONS.split() if name in has)
        or "unknown",
        # Those that this process may use, where the system can tell.
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "memory": format_bytes(1024 * int(memory[1])) if memory else "unknown",
    }


def _versions() -> Mapping[str, object]:
    found = {}
    for name in _PACKAGES.split():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _environment() -> Mapping[str, object]:
    prefixes = ("NANOCHAT_", "NUMBA_", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HOME")
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith(prefixes)}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

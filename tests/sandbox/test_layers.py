"""Which layers hold on this machine, shown by taking them away, and what is said where they are missing."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.errors import SandboxError
from nanochat.sandbox import landlock, seatbelt, seccomp
from nanochat.sandbox.canary import ATTEMPTS
from nanochat.sandbox.child import Layers
from nanochat.sandbox.job import Job, Outcome
from nanochat.sandbox.layers import choose, escapes, layers_of
from nanochat.sandbox.sandbox import Sandbox
from nanochat.sandbox.system_calls import ALWAYS, PROCESSES, SYSTEM_CALLS

# What each layer stops by itself.
STOPS = {
    "bubblewrap": {
        "read a file",
        "write a file",
        "change a file's mode",
        "connect to this machine",
        "signal a process",
    },
    "landlock": {"read a file", "write a file", "connect to this machine", "signal a process"},
    "seccomp": {
        "change a file's mode",
        "open a socket",
        "connect to this machine",
        "signal a process",
        "start a process",
        "map memory without a name",
    },
}


def alone(name: str, all_layers: Layers) -> Layers:
    """One layer of all."""
    return {
        "bubblewrap": replace(all_layers, landlock=False, seccomp=False),
        "landlock": Layers(landlock=True),
        "seccomp": Layers(seccomp=True),
    }[name]


@pytest.mark.parametrize("name", STOPS)
def test_a_layer_alone_stops_what_is_its_own(name: str, tmp_path: Path) -> None:
    with Sandbox("none") as sandbox:
        escaped = escapes(alone(name, layers_of("bubblewrap", str(tmp_path))), sandbox._try)

    assert set(ATTEMPTS) - set(escaped) == STOPS[name]


def test_landlock_holds_within_bubblewrap(tmp_path: Path) -> None:
    word = tmp_path / "word"
    word.write_text("word")
    within = replace(layers_of("bubblewrap", str(tmp_path)), seccomp=False)
    job = Job(command=("/usr/bin/cat", str(word)), readable=("/usr/lib", "/lib64", "/lib"))
    bound = replace(job, readable=(*job.readable, str(word)))

    with Sandbox("none") as sandbox:
        outcome = sandbox._try(bound, within)
        # Bubblewrap shows the file by another name, which the rules do not know.
        hidden = sandbox._try(job, within)

    assert outcome.output == b"word"
    assert hidden.output == b""


def test_nothing_stops_the_canary_without_a_layer() -> None:
    with Sandbox("none") as sandbox:
        assert escapes(Layers(), sandbox._try) == ATTEMPTS


# Prints a process's capabilities: effective, permitted and inheritable, twice.
CAPABILITIES = """
import ctypes, sys
libc = ctypes.CDLL(None)
version, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capget(version, sets) == 0
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to leave")
@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_capabilities_that_are_inherited_are_given_up(kind: str) -> None:
    program = f"""
{CAPABILITIES}
sets[2], sets[5] = sets[1], sets[4]
assert libc.capset(version, sets) == 0 and any(sets)
from nanochat.sandbox.sandbox import Sandbox
from tests.sandbox.programs import OURS
with Sandbox({kind!r}) as sandbox:
    print(sandbox.run(OURS.job({CAPABILITIES + "print(any(sets))"!r})).output)
"""

    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert said.stdout == "b'False\\n'\n"


def test_auto_is_bubblewrap_with_all_layers() -> None:
    with Sandbox() as sandbox:
        assert sandbox.kind == "bubblewrap"
        assert sandbox.layers == ("bubblewrap", "landlock", "seccomp")


def test_auto_without_bubblewrap_is_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with Sandbox() as sandbox:
        assert sandbox.layers == ("landlock", "seccomp")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("setting up uid map: Permission denied", "apparmor_restrict"),
        ("loopback: Failed RTM_NEWADDR: Operation not permitted", "apparmor_restrict"),
        (
            "nesting depth or /proc/sys/user/max_*_namespaces exceeded (ENOSPC)",
            "user.max_user_names",
        ),
        ("Creating new namespace failed: Operation not permitted", "seccomp=unconfined"),
        ("Failed to make / slave: Permission denied", "apparmor=unconfined"),
        ("Unknown option --json-status-fd", "too old"),
    ],
)
def test_bubblewrap_where_namespaces_are_forbidden_names_the_remedy(
    said: str, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "bwrap"
    program.write_text(f"#!/bin/sh\necho 'bwrap: {said}' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(SandboxError, match=f"{re.escape(said)}.*{remedy}"):
        Sandbox("bubblewrap")


def test_a_machine_without_any_layer_is_refused_with_all_reasons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(landlock, "abi", lambda: 0)

    with pytest.raises(
        SandboxError,
        match=r"no sandbox works here: bubblewrap: there is no bwrap on the PATH: apt install bubblewrap.*"
        r"landlock: this kernel offers no Landlock.*seatbelt: .*; give --sandbox none",
    ):
        Sandbox()


def test_a_layer_that_the_canary_leaves_is_not_used(tmp_path: Path) -> None:
    def run(job: Job, layers: Layers) -> Outcome:
        del job, layers
        return Outcome(ending="exit", output=b"read a file\ndone\n")

    with pytest.raises(
        SandboxError, match="a program behind it could read a file, so it is not used"
    ):
        choose("landlock", str(tmp_path), run)


def test_a_processor_without_a_list_of_calls_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "architecture", lambda: None)

    with pytest.raises(SandboxError, match="no filter of system calls is written for Linux on"):
        Sandbox("landlock")


# What says the numbers of calls, which some machines have, and a number in it.
HEADERS = {
    "x86_64": (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), r"__NR_(\w+)\s+(\d+)"),
    "aarch64": (Path("/usr/include/asm-generic/unistd.h"), r"__NR(?:3264)?_(\w+)\s+(\d+)"),
}


@pytest.mark.parametrize("processor", HEADERS)
def test_the_numbers_of_calls_are_those_of_the_kernel(processor: str) -> None:
    header, number = HEADERS[processor]
    if not header.exists():
        pytest.skip(f"there is no {header}")
    right = {name: int(value) for name, value in re.findall(number, header.read_text())}
    ours = SYSTEM_CALLS[processor].numbers

    assert ours == {name: right[name] for name in ours}
    assert {*ALWAYS, *PROCESSES} & {*right} <= {*ours}


def test_the_profile_of_macos_denies_what_it_does_not_name() -> None:
    command = seatbelt.arguments(Job(command=("/bin/echo", "word"), writable='/w"'))

    assert command[:2] == ["/usr/bin/sandbox-exec", "-p"]
    assert command[2].splitlines()[:2] == ["(version 1)", "(deny default)"]
    assert '(subpath "/w\\"")' in command[2]
    assert "process-fork" not in command[2]
    assert command[3:] == ["/bin/echo", "word"]

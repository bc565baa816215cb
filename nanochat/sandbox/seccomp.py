"""This file holds the filter of system calls: a small program by which the kernel refuses what a job has no use for.

It is written in the classic BPF that ``prctl(PR_SET_SECCOMP)`` and bubblewrap's ``--seccomp`` take (seccomp(2)). Calls
are denied by name, not allowed by name, since the C library and the compiler of tomorrow make calls that nobody knows
today; calls that are newer than the list do not exist, which every library is prepared for.
"""

import ctypes
import errno
import functools
import os
import platform
import struct
from typing import NamedTuple

from nanochat.sandbox.libc import libc
from nanochat.sandbox.system_calls import ALWAYS, NEWEST, PROCESSES, SYSTEM_CALLS, Architecture

__all__ = ["architecture", "for_process", "install", "program"]

# Instructions: load a word of the call's record, compare, return (linux/bpf_common.h).
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
# Offsets in struct seccomp_data: the number, the architecture, and the low words of the arguments.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, (16, 24, 32)

_CLONE_THREAD = 0x00010000
# Namespaces: time, mount, cgroup, uts, ipc, user, pid, net.
_CLONE_NEW = 0x7E020080
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _MODE_FILTER = 1, 22, 2
# ioctl's FIONBIO and FIOCLEX.
_PIPE_REQUESTS = (0x5421, 0x5451)
# fcntl's F_SETOWN, F_SETSIG and F_SETOWN_EX send any signal to any process of the same user.
_SIGNALS_BY_FILES = (8, 10, 15)

_SIGKILL = 9

# Stands where the number of the process will be, and is none: those end at 2**22.
_PROCESS = 0x7FABCDEF


class _Instruction(NamedTuple):
    code: int
    if_true: int
    if_false: int
    value: int


def architecture() -> Architecture | None:
    """What is known of this machine's system calls, or `None` for a processor for which there is no list."""
    return SYSTEM_CALLS.get(platform.machine()) if os.uname().sysname == "Linux" else None


@functools.cache
def program(*, may_spawn: bool) -> bytes:
    """The filter as the kernel wants it, but for the process that it is for: see :func:`for_process`.

    Parameters
    ----------
    may_spawn : bool
        Whether a job may start processes, and change the modes of files.

    Raises
    ------
    OSError
        If there is no list of system calls for this processor.
    """
    known = architecture()
    if known is None:
        raise OSError(errno.ENOSYS, f"no list of the system calls of {platform.machine()}")
    denied = ALWAYS if may_spawn else ALWAYS + PROCESSES
    code = [
        _Instruction(_LOAD, 0, 0, _ARCHITECTURE),
        *_return_unless(_EQUAL, known.audit, _KILL),
        _Instruction(_LOAD, 0, 0, _NUMBER),
        # On x86-64 these are the calls of x32, another way to say the same numbers.
        *_return_if(_GREATER, 0x3FFFFFFF, _KILL),
        *_return_if(_GREATER, NEWEST, _ERROR | errno.ENOSYS),
        # Its flags are in memory, where no filter looks. The C library then calls clone.
        *_return_if(_EQUAL, known.numbers["clone3"], _ERROR | errno.ENOSYS),
    ]
    for name in denied:
        if name in known.numbers:
            code += _return_if(_EQUAL, known.numbers[name], _ERROR | errno.EPERM)
    forbidden_bits = _return_if(_ANY_BIT, _CLONE_NEW, _ERROR | errno.EPERM)
    only_threads = _return_unless(_ANY_BIT, _CLONE_THREAD, _ERROR | errno.EPERM)
    code += _on_argument(
        known.numbers["clone"], 0, forbidden_bits if may_spawn else forbidden_bits + only_threads
    )
    # Nothing is a terminal, but pipes may be told not to block, and not to be inherited.
    requests = [
        _Instruction(_EQUAL, len(_PIPE_REQUESTS) - i, 0, request)
        for i, request in enumerate(_PIPE_REQUESTS)
    ]
    requests.append(_Instruction(_RETURN, 0, 0, _ERROR | errno.ENOTTY))
    code += _on_argument(known.numbers["ioctl"], 1, requests)
    signals: list[_Instruction] = []
    only_null = _return_unless(_EQUAL, 0, _ERROR | errno.EPERM)
    itself = _return_unless(_EQUAL, _PROCESS, _ERROR | errno.EPERM)
    for name, signal_argument in (("kill", 1), ("tgkill", 2)):
        code += _on_argument(
            known.numbers[name],
            0,
            [
                *itself,
                _Instruction(_LOAD, 0, 0, _ARGUMENTS[signal_argument]),
                # Whoever dies of that one was killed by the machine.
                *_return_if(_EQUAL, _SIGKILL, _ERROR | errno.EPERM),
            ],
        )
    # Limits may be asked for. A new one is a pointer, of which both words are looked at.
    null = [*only_null, _Instruction(_LOAD, 0, 0, _ARGUMENTS[2] + 4), *only_null]
    code += _on_argument(known.numbers["prlimit64"], 2, null)
    code += _on_argument(
        known.numbers["prctl"], 0, _return_if(_EQUAL, _PR_SET_PDEATHSIG, _ERROR | errno.EPERM)
    )
    for command in _SIGNALS_BY_FILES:
        signals += _return_if(_EQUAL, command, _ERROR | errno.EPERM)
    code += _on_argument(known.numbers["fcntl"], 1, signals)
    code.append(_Instruction(_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def for_process(code: bytes, pid: int) -> bytes:
    """The filter for a process, which may send signals to itself alone; `pid` is 1 in a namespace of its own."""
    return code.replace(struct.pack("<I", _PROCESS), struct.pack("<I", pid))


def _return_if(comparison: int, value: int, result: int) -> list[_Instruction]:
    return [_Instruction(comparison, 0, 1, value), _Instruction(_RETURN, 0, 0, result)]


def _return_unless(comparison: int, value: int, result: int) -> list[_Instruction]:
    return [_Instruction(comparison, 1, 0, value), _Instruction(_RETURN, 0, 0, result)]


def _on_argument(number: int, argument: int, code: list[_Instruction]) -> list[_Instruction]:
    """Look at an argument of one call by `code`, and allow the call if that does not return."""
    code = [
        _Instruction(_LOAD, 0, 0, _ARGUMENTS[argument]),
        *code,
        _Instruction(_RETURN, 0, 0, _ALLOW),
    ]
    return [_Instruction(_EQUAL, 0, len(code), number), *code]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def install(code: bytes) -> None:
    """Put this process, and all that it will start, under a filter; it must not be able to gain privileges any more.

    Raises
    ------
    OSError
        If the kernel has no filters.
    """
    filter_program = _Program(len(code) // 8, code)
    if libc().prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filter_program), 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, f"seccomp: {os.strerror(error)}")

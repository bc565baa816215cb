"""This file holds Landlock, by which a Linux process gives up files, ports and signals for good, without any privilege.

Three system calls, documented in the kernel's ``Documentation/userspace-api/landlock.rst``. Landlock does not restrict
changes of a file's mode, owner, times or extended attributes: :mod:`nanochat.sandbox.seccomp` does.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from nanochat.sandbox.libc import libc

__all__ = ["MINIMUM_ABI", "RESTRICT_SELF", "abi", "restrict", "ruleset"]

# Of all architectures.
_CREATE_RULESET, _ADD_RULE, RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1

# Before version 3, a process could still truncate every file.
MINIMUM_ABI = 3
# How many of the bits that are rights over files each version knows.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE = 1 << 14
# All but the making of devices, sockets and pipes, and the control of devices.
_MAKE_SPECIAL = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11
_CONTROL_DEVICE = 1 << 15
# From versions 4 and 6 on: TCP's bind and connect; abstract sockets and signals of processes outside.
_PORTS, _SCOPES = 0b11, 0b11


def _call(number: int, *arguments: object) -> int:
    result: int = libc().syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock: {os.strerror(error)}")
    return result


def abi() -> int:
    """The version of Landlock that the kernel offers; 0 if it offers none."""
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    except (OSError, AttributeError):
        return 0


def ruleset(*, readable: Iterable[str], writable: Iterable[str]) -> int:
    """Make a set of rules, and return its file descriptor: all is forbidden but what is named.

    Parameters
    ----------
    readable, writable : iterable of str
        Files and folders that may be read and executed; and written, too. What does not exist is passed over.

    Raises
    ------
    OSError
        If the kernel offers no Landlock.
    """
    version = abi()
    rights = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    ports = _PORTS if version >= 4 else 0
    scopes = _SCOPES if version >= 6 else 0
    attributes = struct.pack("<QQQ", rights, ports, scopes)
    # An older kernel takes the longer structure as long as what it does not know is zero.
    descriptor = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    for paths, allowed in (
        (readable, _EXECUTE | _READ_FILE | _READ_DIRECTORY),
        (writable, rights & ~_MAKE_SPECIAL & ~_CONTROL_DEVICE),
    ):
        for path in paths:
            _allow(descriptor, path, allowed)
    return descriptor


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
        rule = struct.pack("<Qi", rights, descriptor)
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


def restrict(ruleset: int) -> None:
    """Bind this process, and all that it will start, to `ruleset`; it must not be able to gain privileges any more."""
    _call(RESTRICT_SELF, ruleset, 0)

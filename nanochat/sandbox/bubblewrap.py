"""This file holds how a job runs in bubblewrap: in namespaces of its own, where nothing is but what it may read.

Bubblewrap (https://github.com/containers/bubblewrap) mounts what is named, read-only, into an empty tree, without
network, other processes or capabilities. Landlock cannot be applied before it, since a process that is bound by it
mounts nothing, so :func:`launcher_program` gives a program of 183 bytes, which bubblewrap starts, and which binds
itself and becomes the job.
"""

import platform
import struct

from nanochat.sandbox.job import Job

__all__ = ["FILTER", "RULES", "STATUS", "arguments", "launcher_program"]

# The file descriptors that bubblewrap gets: Landlock's rules, the filter of calls, and where it says how the job ended.
RULES, FILTER, STATUS = 3, 4, 5

_LAUNCHER = "/launcher"
# Who nobody is.
_USER = "65534"


def arguments(bubblewrap: str, job: Job, *, launcher: str, filtered: bool) -> list[str]:
    """The command that runs a job.

    Parameters
    ----------
    bubblewrap : str
        The path of the program.
    job : Job
        What it runs. As process 1, so that this one's end is the end of all that it started.
    launcher : str
        Where :func:`launcher_program` lies as a file; "" to do without Landlock.
    filtered : bool
        Whether there is a filter of system calls at :data:`FILTER`.
    """
    command = [bubblewrap, "--unshare-all", "--unshare-user", "--uid", _USER, "--gid", _USER]
    # Root would keep its capabilities.
    command += ["--cap-drop", "ALL", "--die-with-parent", "--new-session", "--as-pid-1"]
    command += ["--hostname", "sandbox", "--json-status-fd", str(STATUS)]
    if filtered:
        command += ["--seccomp", str(FILTER)]
    for name, value in job.environment:
        command += ["--setenv", name, value]
    for path in (job.command[0], *job.readable):
        command += ["--ro-bind", path, path]
    for place, target in job.links:
        command += ["--symlink", target, place]
    if job.writable:
        command += ["--bind", job.writable, job.writable, "--chdir", job.writable]
    if launcher:
        command += ["--ro-bind", launcher, _LAUNCHER]
    # The tree itself is in memory, which no limit of a process counts.
    command += ["--remount-ro", "/", "--"]
    return [*command, *([_LAUNCHER] if launcher else []), *job.command]


def launcher_program() -> bytes | None:
    """A program that binds itself to the rules of Landlock in :data:`RULES`, and becomes what its arguments say.

    It is an ELF file with one segment, which holds the code alone. `None` where there is no code for the processor.
    """
    if platform.machine() != "x86_64":
        return None
    become = bytes.fromhex(
        "b803000000"  # mov eax, 3            close(RULES), which edi still holds
        "0f05"  #       syscall
        "488b0c24"  #   mov rcx, [rsp]        the number of arguments
        "488b7c2410"  # mov rdi, [rsp+16]     the job's path
        "488d742410"  # lea rsi, [rsp+16]     its arguments
        "488d54cc10"  # lea rdx, [rsp+8*rcx+16]   its environment
        "b83b000000"  # mov eax, 59           execve
        "0f05"  #       syscall
    )
    code = (
        b"\xbf"
        + struct.pack("<I", RULES)  # mov edi, RULES
        + bytes.fromhex(
            "31f6"  #       xor esi, esi
            "b8be010000"  # mov eax, 446      landlock_restrict_self(RULES, 0)
            "0f05"  #       syscall
            "85c0"  #       test eax, eax
            "75"  #         jnz               over `become`
        )
        + bytes([len(become)])
        + become
        + bytes.fromhex(
            "b83c000000"  # mov eax, 60       exit(126), as a shell says "cannot be run"
            "bf7e000000"  # mov edi, 126
            "0f05"  #       syscall
        )
    )
    address, headers = 0x400000, 64 + 56
    x86_64, executable, loaded, readable_executable = 62, 2, 1, 5
    size = headers + len(code)
    return (
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
        + struct.pack("<HHIQQQ", executable, x86_64, 1, address + headers, 64, 0)
        + struct.pack("<IHHHHHH", 0, 64, 56, 1, 0, 0, 0)
        + struct.pack(
            "<IIQQQQQQ", loaded, readable_executable, 0, address, address, size, size, 4096
        )
        + code
    )

"""This file holds how a job runs on macOS: under ``sandbox-exec``, by a profile that denies what it does not name."""

from collections.abc import Iterable

from nanochat.sandbox.job import Job

__all__ = ["PROGRAM", "arguments"]

PROGRAM = "/usr/bin/sandbox-exec"

# Every program is linked against these, and reads them as it starts.
_SYSTEM = ("/usr/lib", "/System/Library", "/dev/null", "/dev/urandom", "/private/var/db/dyld")


def arguments(job: Job) -> list[str]:
    """The command that runs a job under a profile in Apple's language of S-expressions (``man 7 sandbox``)."""
    readable = (job.command[0], *job.readable, *_SYSTEM)
    lines = [
        "(version 1)",
        "(deny default)",
        "(allow sysctl-read)",
        # The folders on the way to a file are looked at, not read.
        "(allow file-read-metadata)",
        "(allow process-exec file-read* file-map-executable " + _places(readable) + ")",
    ]
    if job.writable:
        lines.append("(allow process-exec file-read* file-write* " + _places([job.writable]) + ")")
    if job.may_spawn:
        lines.append("(allow process-fork)")
    return [PROGRAM, "-p", "\n".join(lines), *job.command]


def _places(paths: Iterable[str]) -> str:
    quoted = (path.replace("\\", "\\\\").replace('"', '\\"') for path in paths)
    return " ".join(f'(subpath "{path}")' for path in quoted)

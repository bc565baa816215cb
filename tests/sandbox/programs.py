"""This file holds programs that try to leave a sandbox, hold it up or fill it, written in Python."""

import sys
from pathlib import Path
from typing import NamedTuple

from nanochat.sandbox.canary import PYTHON_FILES
from nanochat.sandbox.job import SYSTEM_LIBRARIES, Job, Limits

# As little as a busy machine leaves to a Python that starts.
LIMITS = Limits(cpu_seconds=0.25, wall_seconds=1)
SLEEP = "import time; time.sleep(1000)"

# Each prints "escaped" if it could do what it should not. `call` makes system calls that Python has no name for.
ESCAPES = {
    "reads a file of the machine": "open('/etc/passwd').read()",
    "lists its folder": "os.listdir('/')",
    "reads the folder of root": "os.listdir('/root')",
    "reads the environment of process 1": "open('/proc/1/environ', 'rb').read()",
    "lists processes": "os.listdir('/proc')",
    "writes at the root": "open('/x', 'w').close()",
    "writes to /tmp": "open('/tmp/x', 'w').close()",
    "writes to /dev/shm": "open('/dev/shm/x', 'w').close()",
    "writes into a library": "open('/usr/lib/x', 'w').close()",
    "changes the mode of a library": "os.chmod('/usr/lib', 0o777)",
    "changes the times of a library": "os.utime('/usr/lib')",
    "opens a TCP socket": "socket.socket(socket.AF_INET)",
    "opens a UDP socket": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "opens a Unix socket": "socket.socket(socket.AF_UNIX)",
    "opens a pair of sockets": "socket.socketpair()",
    "forks": "os.fork() or os._exit(0)",
    "starts a session": "os.setsid()",
    "starts a shell": "os.posix_spawn('/bin/sh', ['sh', '-c', 'true'], {})",
    "becomes a shell": "os.execv('/bin/sh', ['sh', '-c', 'echo escaped'])",
    "signals process 1": "os.getpid() == 1 and refuse() or os.kill(1, 0)",
    "signals its parent": "os.kill(os.getppid(), 0) if os.getppid() else refuse()",
    "signals all": "os.kill(-1, 0)",
    "signals its group": "os.kill(0, 0)",
    "dies like one that the machine kills": "os.kill(os.getpid(), 9)",
    "has itself killed by a timer": "call(222, 0, struct.pack('qii48x', 0, 9, 0), ctypes.create_string_buffer(8))",
    "signals by pidfd": "os.pidfd_open(os.getppid() or 1)",
    "makes namespaces": "call(272, 0x10000000)",
    "clones into namespaces": "call(56, 0x10000011, 0, 0, 0, 0)",
    "mounts": "call(165, b'none', b'/tmp', b'tmpfs', 0, 0)",
    "changes its root": "os.chroot('/usr')",
    "traces": "call(101, 16, os.getppid() or 1, 0, 0)",
    "maps memory without a name": "os.memfd_create('m')",
    "shares memory": "call(29, 0, 4096, 0o1600)",
    "deletes a queue of the machine": "libc.syscall(71, 9, 0, 0); ctypes.get_errno() != 1 or refuse()",
    "opens a ring": "call(425, 8, ctypes.create_string_buffer(120))",
    "asks for keys": "call(250, 0, -3, 1)",
    "loads a filter program": "call(321, 0, ctypes.create_string_buffer(72), 72)",
    "raises its limits": "resource.setrlimit(resource.RLIMIT_AS, resource.getrlimit(resource.RLIMIT_AS))",
    "limits another": "resource.prlimit(os.getppid() or 2, resource.RLIMIT_NOFILE, (9, 9))",
    "lives on": "libc.prctl(1, 0, 0, 0, 0) and refuse()",
    "takes over the signals of a file": "fcntl.fcntl(1, 8, os.getppid() or 2)",
    "pushes characters into the terminal": "fcntl.ioctl(0, 0x5412, b'x')",
    "becomes somebody else": "os.getuid() == 1000 and refuse() or os.setuid(1000)",
    "makes a device": "os.mknod('/tmp/d', 0o20666, os.makedev(1, 1))",
    "finds secrets in its environment": "os.environ['SECRET']",
    "finds descriptors": "any(is_open(i) for i in range(3, 256)) or refuse()",
}

_SETTING = """
import ctypes, fcntl, os, resource, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def refuse(): raise PermissionError
def is_open(descriptor):
    try:
        return os.fstat(descriptor)
    except OSError:
        return None
def call(*arguments):
    if libc.syscall(*arguments) < 0: refuse()
"""

_TRY = """
try:
    {attempt}
except (OSError, KeyError, ValueError):
    print("held")
else:
    print("escaped")
"""

# Each is bound to be stopped: how it ends.
HOLD_UPS = {
    "prints for ever": ("while True: print('x' * 1000)", "output limit"),
    "complains for ever": (
        "import sys\nwhile True: print('x' * 1000, file=sys.stderr)",
        "output limit",
    ),
    "loops": ("while True: pass", "cpu limit"),
    "sleeps": ("import time; time.sleep(1000)", "wall limit"),
    "closes its outputs and loops": (
        "import os; os.close(1); os.close(2)\nwhile True: pass",
        "cpu limit",
    ),
    "closes its outputs and sleeps": (
        "import os, time; os.close(1); os.close(2); time.sleep(1000)",
        "wall limit",
    ),
    "ignores signals and loops": (
        "import signal\nfor s in set(signal.valid_signals()) - {9, 19}: signal.signal(s, signal.SIG_IGN)\n"
        "while True: pass",
        "cpu limit",
    ),
    "starts threads for ever": (
        "import threading\nthreading.stack_size(2**15)\nwait = threading.Event()\n"
        "while True: threading.Thread(target=wait.wait).start()",
        "thread limit",
    ),
    "loops in many threads": (
        "import threading\ndef loop():\n  while True: pass\n"
        "for _ in range(4): threading.Thread(target=loop).start()",
        "cpu limit",
    ),
}


class Interpreter(NamedTuple):
    """A Python that can be run in a sandbox."""

    path: str
    readable: tuple[str, ...]

    def job(self, program: str, *arguments: str, limits: Limits = LIMITS) -> Job:
        """A job that runs a program in Python."""
        command = (self.path, "-I", "-S", "-c", program, *arguments)
        return Job(command=command, readable=self.readable, limits=limits)

    def escape(self, name: str) -> Job:
        """The job that tries one of :data:`ESCAPES`."""
        return self.job(_SETTING + _TRY.format(attempt=ESCAPES[name]))


OURS = Interpreter(str(Path(sys.executable).resolve()), (*SYSTEM_LIBRARIES, *PYTHON_FILES))
# The system's, which is in folders that everybody may read.
THEIRS = Interpreter(str(Path("/usr/bin/python3").resolve()), SYSTEM_LIBRARIES)

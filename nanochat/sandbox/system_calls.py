"""This file holds the system calls that a sandboxed job has no use for, and their numbers.

Numbers are those of Linux's ``asm/unistd_64.h`` (x86-64) and ``asm-generic/unistd.h`` (aarch64); 424 and above are the
same everywhere.
"""

from typing import NamedTuple

__all__ = ["ALWAYS", "NEWEST", "PROCESSES", "SYSTEM_CALLS", "Architecture"]


class Architecture(NamedTuple):
    """A processor's word for itself (``linux/audit.h``) and its numbers of calls by name."""

    audit: int
    numbers: dict[str, int]


# The last call that the lists below were drawn up with: Linux 6.5's. What came later is refused as unknown.
NEWEST = 451

# Denied to compilers, too. What is left over takes nothing of which a machine or a user has but a few, and reaches no
# other process.
_ALWAYS = """
tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal pidfd_open pidfd_getfd ptrace process_vm_readv
process_vm_writev process_madvise process_mrelease kcmp migrate_pages move_pages timer_create setsid setpgid setrlimit
setpriority sched_setaffinity sched_setscheduler sched_setparam sched_setattr ioprio_set socket socketpair unshare
setns mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr
name_to_handle_at open_by_handle_at io_uring_setup io_uring_enter io_uring_register bpf perf_event_open userfaultfd
keyctl add_key request_key memfd_create memfd_secret shmget shmat shmctl msgget msgsnd msgrcv msgctl semget semop
semtimedop semctl mq_open mq_unlink chown fchown lchown fchownat setxattr lsetxattr fsetxattr removexattr lremovexattr
fremovexattr mknod mknodat reboot init_module finit_module delete_module kexec_load kexec_file_load swapon swapoff
acct quotactl quotactl_fd settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname iopl ioperm
syslog vhangup modify_ldt personality fanotify_init fanotify_mark inotify_init inotify_init1 inotify_add_watch
io_setup sync syncfs
"""

# Denied to programs that are not trusted.
_PROCESSES = "fork vfork chmod fchmod fchmodat utime utimes utimensat futimesat"

# In order of the numbers on aarch64, whose names on x86-64 are the same.
_GENERIC = """
io_setup 0 setxattr 5 lsetxattr 6 fsetxattr 7 removexattr 14 lremovexattr 15 fremovexattr 16 fcntl 25 inotify_init1 26
inotify_add_watch 27 ioctl 29 ioprio_set 30 mknodat 33 umount2 39 mount 40 pivot_root 41 chroot 51 fchmod 52 fchmodat
53 fchownat 54 fchown 55 vhangup 58 quotactl 60 sync 81 utimensat 88 acct 89 personality 92 unshare 97 kexec_load 104
init_module 105 delete_module 106 timer_create 107 clock_settime 112 syslog 116 ptrace 117 sched_setparam 118
sched_setscheduler 119 sched_setaffinity 122 kill 129 tkill 130 tgkill 131 rt_sigqueueinfo 138 setpriority 140 reboot
142 setpgid 154 setsid 157 sethostname 161 setdomainname 162 setrlimit 164 prctl 167 settimeofday 170 adjtimex 171
mq_open 180 mq_unlink 181 msgget 186 msgctl 187 msgrcv 188 msgsnd 189 semget 190 semctl 191 semtimedop 192 semop 193
shmget 194 shmctl 195 shmat 196 socket 198 socketpair 199 add_key 217 request_key 218 keyctl 219 clone 220 swapon 224
swapoff 225 migrate_pages 238 move_pages 239 rt_tgsigqueueinfo 240 perf_event_open 241 prlimit64 261 fanotify_init 262
fanotify_mark 263 name_to_handle_at 264 open_by_handle_at 265 clock_adjtime 266 syncfs 267 setns 268 process_vm_readv
270 process_vm_writev 271 kcmp 272 finit_module 273 sched_setattr 274 memfd_create 279 bpf 280 userfaultfd 282
kexec_file_load 294
"""
_X86_64 = """
ioctl 16 shmget 29 shmat 30 shmctl 31 socket 41 socketpair 53 clone 56 fork 57 vfork 58 kill 62 semget 64 semop 65
semctl 66 msgget 68 msgsnd 69 msgrcv 70 msgctl 71 fcntl 72 chmod 90 fchmod 91 chown 92 fchown 93 lchown 94 ptrace 101
syslog 103 setpgid 109 setsid 112 rt_sigqueueinfo 129 utime 132 mknod 133 personality 135 setpriority 141
sched_setparam 142 sched_setscheduler 144 vhangup 153 modify_ldt 154 pivot_root 155 prctl 157 adjtimex 159 setrlimit
160 chroot 161 sync 162 acct 163 settimeofday 164 mount 165 umount2 166 swapon 167 swapoff 168 reboot 169 sethostname
170 setdomainname 171 iopl 172 ioperm 173 init_module 175 delete_module 176 quotactl 179 setxattr 188 lsetxattr 189
fsetxattr 190 removexattr 197 lremovexattr 198 fremovexattr 199 tkill 200 sched_setaffinity 203 io_setup 206
semtimedop 220 timer_create 222 clock_settime 227 tgkill 234 utimes 235 mq_open 240 mq_unlink 241 kexec_load 246
add_key 248 request_key 249 keyctl 250 ioprio_set 251 inotify_init 253 inotify_add_watch 254 migrate_pages 256 mknodat
259 fchownat 260 futimesat 261 fchmodat 268 unshare 272 move_pages 279 utimensat 280 inotify_init1 294
rt_tgsigqueueinfo 297 perf_event_open 298 fanotify_init 300 fanotify_mark 301 prlimit64 302 name_to_handle_at 303
open_by_handle_at 304 clock_adjtime 305 syncfs 306 setns 308 process_vm_readv 310 process_vm_writev 311 kcmp 312
finit_module 313 sched_setattr 314 memfd_create 319 kexec_file_load 320 bpf 321 userfaultfd 323
"""
_SHARED = """
pidfd_send_signal 424 io_uring_setup 425 io_uring_enter 426 io_uring_register 427 open_tree 428 move_mount 429 fsopen
430 fsconfig 431 fsmount 432 fspick 433 pidfd_open 434 clone3 435 pidfd_getfd 438 process_madvise 440 mount_setattr
442 quotactl_fd 443 memfd_secret 447 process_mrelease 448
"""


ALWAYS, PROCESSES = tuple(_ALWAYS.split()), tuple(_PROCESSES.split())


def _numbers(text: str) -> dict[str, int]:
    words = (text + _SHARED).split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


SYSTEM_CALLS = {
    "x86_64": Architecture(0xC000003E, _numbers(_X86_64)),
    "aarch64": Architecture(0xC00000B7, _numbers(_GENERIC)),
}

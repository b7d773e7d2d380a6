"""A list of the system calls that caged code may make; every other call fails.

One process with threads: no new processes, no programs, no sockets but connected pairs, no signals to others, no shared
memory or queues, no change of identity, limits of others, mounts or namespaces. In a sandbox with namespaces this is a
second wall; where the kernel allows none it is the wall. Refused calls fail with EPERM, so code that merely tries is
not killed.
"""

import ctypes
import functools
import os
import platform
import struct
from collections.abc import Iterator

from counterpoint.rewards.sandbox._linux import PR_SET_NO_NEW_PRIVS, prctl

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_LOAD, _EQUAL, _RETURN, _AT_LEAST, _ANY_BIT, _AND = 0x20, 0x15, 0x06, 0x35, 0x45, 0x54
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCHITECTURE = 0, 4
_X32_BIT = 0x40000000
_NEWER_CALLS = 463  # "not implemented" for what later C libraries try first, so that they fall back

_Instruction = tuple[int, int, int, int]
_libc = ctypes.CDLL(None, use_errno=True)

# name:number, as in the kernel's user interface headers.
_ALWAYS = {
    "x86_64": """
    read:0 write:1 open:2 close:3 stat:4 fstat:5 lstat:6 poll:7 lseek:8 mmap:9 mprotect:10 munmap:11 brk:12
    rt_sigaction:13 rt_sigprocmask:14 rt_sigreturn:15 pread64:17 pwrite64:18 readv:19 writev:20 access:21 pipe:22
    select:23 sched_yield:24 mremap:25 msync:26 mincore:27 madvise:28 dup:32 dup2:33 pause:34 nanosleep:35 getitimer:36
    alarm:37 setitimer:38 getpid:39 recvfrom:45 shutdown:48 exit:60 wait4:61 uname:63 flock:73 fsync:74 fdatasync:75
    truncate:76 ftruncate:77 getdents:78 getcwd:79 chdir:80 fchdir:81 rename:82 mkdir:83 rmdir:84 creat:85 link:86
    unlink:87 symlink:88 readlink:89 chmod:90 fchmod:91 umask:95 gettimeofday:96 getrlimit:97 getrusage:98 sysinfo:99
    times:100 getuid:102 getgid:104 geteuid:107 getegid:108 getppid:110 getpgrp:111 getgroups:115 getresuid:118
    getresgid:120 getpgid:121 getsid:124 rt_sigpending:127 rt_sigtimedwait:128 rt_sigsuspend:130 sigaltstack:131
    utime:132 statfs:137 fstatfs:138 getpriority:140 sched_getparam:143 sched_getscheduler:145
    sched_get_priority_max:146 sched_get_priority_min:147 arch_prctl:158 gettid:186 time:201 futex:202
    sched_getaffinity:204 epoll_create:213 getdents64:217 set_tid_address:218 restart_syscall:219 fadvise64:221
    clock_gettime:228 clock_getres:229 clock_nanosleep:230 exit_group:231 epoll_wait:232 epoll_ctl:233 utimes:235
    waitid:247 openat:257 mkdirat:258 futimesat:261 newfstatat:262 unlinkat:263 renameat:264 linkat:265 symlinkat:266
    readlinkat:267 fchmodat:268 faccessat:269 pselect6:270 ppoll:271 set_robust_list:273 get_robust_list:274
    utimensat:280 epoll_pwait:281 eventfd:284 fallocate:285 eventfd2:290 epoll_create1:291 dup3:292 pipe2:293
    preadv:295 pwritev:296 getcpu:309 renameat2:316 getrandom:318 membarrier:324 copy_file_range:326 statx:332 rseq:334
    close_range:436 faccessat2:439 epoll_pwait2:441
    """,
    "aarch64": """
    getcwd:17 eventfd2:19 epoll_create1:20 epoll_ctl:21 epoll_pwait:22 dup:23 dup3:24 flock:32 mkdirat:34 unlinkat:35
    symlinkat:36 linkat:37 renameat:38 statfs:43 fstatfs:44 truncate:45 ftruncate:46 fallocate:47 faccessat:48 chdir:49
    fchdir:50 fchmod:52 fchmodat:53 openat:56 close:57 pipe2:59 getdents64:61 lseek:62 read:63 write:64 readv:65
    writev:66 pread64:67 pwrite64:68 preadv:69 pwritev:70 pselect6:72 ppoll:73 readlinkat:78 newfstatat:79 fstat:80
    fsync:82 fdatasync:83 utimensat:88 exit:93 exit_group:94 waitid:95 set_tid_address:96 futex:98 set_robust_list:99
    get_robust_list:100 nanosleep:101 getitimer:102 setitimer:103 clock_gettime:113 clock_getres:114
    clock_nanosleep:115 sched_getscheduler:120 sched_getparam:121 sched_getaffinity:123 sched_yield:124
    sched_get_priority_max:125 sched_get_priority_min:126 restart_syscall:128 sigaltstack:132 rt_sigsuspend:133
    rt_sigaction:134 rt_sigprocmask:135 rt_sigpending:136 rt_sigtimedwait:137 rt_sigreturn:139 getpriority:141
    getresuid:148 getresgid:150 times:153 getpgid:155 getsid:156 getgroups:158 uname:160 getrlimit:163 getrusage:165
    umask:166 getcpu:168 gettimeofday:169 getpid:172 getppid:173 getuid:174 geteuid:175 getgid:176 getegid:177
    gettid:178 sysinfo:179 recvfrom:207 shutdown:210 brk:214 munmap:215 mremap:216 mmap:222 fadvise64:223 mprotect:226
    msync:227 mincore:232 madvise:233 wait4:260 renameat2:276 getrandom:278 membarrier:283 copy_file_range:285
    statx:291 rseq:293 close_range:436 faccessat2:439 epoll_pwait2:441
    """,
}
_CHECKED = {
    "x86_64": "ioctl:16 sendto:44 socketpair:53 clone:56 fcntl:72 prctl:157 tgkill:234 prlimit64:302 clone3:435",
    "aarch64": "fcntl:25 ioctl:29 tgkill:131 prctl:167 socketpair:199 sendto:206 clone:220 prlimit64:261 clone3:435",
}
_SUPERVISOR = {"x86_64": "kill:62 pidfd_open:434", "aarch64": "kill:129 pidfd_open:434"}
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Commands that neither name another process nor send signals: duplicates, flags, locks, sizes of pipes.
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1031, 1032)
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # what the interpreter asks of files, pipes and terminals
_PRCTL = (15, 16, 0x53564D41)  # a thread's name, a mapping's name
_THREAD = 0x00010100  # CLONE_THREAD | CLONE_VM
_CLONE_REFUSED = 0x7E02A000  # namespaces, and children of or traced by somebody else
_ANY_PID = b"\xed\xc0\xde\x0d"
_STREAM = 1
_SIGKILL = 9


def is_available() -> bool:
    """Whether this machine's architecture has a table here."""
    return platform.machine() in _ARCHITECTURES


def install(supervisor: bool = False) -> None:
    """Installs the filter for this process and its threads, for good. Raises ``OSError`` where the kernel refuses.

    Arguments:
        supervisor: Also allows signals to other processes and waiting for their ends.
    """
    program = _compiled(platform.machine(), supervisor).replace(_ANY_PID, struct.pack("I", os.getpid()))
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    address = ctypes.create_string_buffer(header, len(header))
    if _libc.prctl(
        _PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), address, ctypes.c_ulong(0), ctypes.c_ulong(0)
    ):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def _numbers(table: str) -> dict[str, int]:
    return {name: int(number) for name, number in (entry.split(":") for entry in table.split())}


@functools.cache
def _compiled(machine: str, supervisor: bool) -> bytes:
    """The filter; a process's own number stands in it as ``_ANY_PID``. Installing takes a time linear in its length."""
    free = [*_numbers(_ALWAYS[machine]).values(), *(_numbers(_SUPERVISOR[machine]).values() if supervisor else ())]
    code = [*_entry(_ARCHITECTURES[machine]), *_checks(_numbers(_CHECKED[machine]))]
    code += [step for first, last in _intervals(sorted(free)) for step in _if_between(first, last)]
    code += [(_AT_LEAST, 0, 1, _NEWER_CALLS), (_RETURN, 0, 0, _ERROR | _ENOSYS), (_RETURN, 0, 0, _ERROR | _EPERM)]
    return b"".join(struct.pack("HBBI", *step) for step in code)


def prepare() -> None:
    """Makes the filters once, for processes that are forked from this one."""
    for supervisor in (False, True) if is_available() else ():
        _compiled(platform.machine(), supervisor)


def _intervals(numbers: list[int]) -> list[tuple[int, int]]:
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return list(zip(starts, ends, strict=True))


def _if_between(first: int, last: int) -> list[_Instruction]:
    if first == last:
        return _if_equal(first, _ALLOW)
    return [(_AT_LEAST, 2, 0, last + 1), (_AT_LEAST, 0, 1, first), (_RETURN, 0, 0, _ALLOW)]


def _entry(architecture: int) -> list[_Instruction]:
    refuse = (_RETURN, 0, 0, _ERROR | _EPERM)
    start: list[_Instruction] = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), refuse]
    return [*start, (_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32_BIT), refuse]


def _if_equal(value: int, answer: int) -> list[_Instruction]:
    return [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, answer)]


def _argument(index: int, high: bool = False) -> _Instruction:
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)


def _checks(numbers: dict[str, int]) -> Iterator[_Instruction]:
    """Calls that are allowed with some arguments only; each block ends with an answer."""
    one_of = {"fcntl": (1, _FCNTL), "ioctl": (1, _IOCTL), "prctl": (0, _PRCTL), "prlimit64": (0, (0,))}
    blocks: dict[str, list[_Instruction]] = {
        name: [_argument(index), *(step for value in values for step in _if_equal(value, _ALLOW))]
        for name, (index, values) in one_of.items()
    }
    # No address: a datagram could name a socket of somebody else. For the same reason pairs are streams.
    blocks["sendto"] = [_argument(4), (_EQUAL, 0, 3, 0), _argument(4, high=True), *_if_equal(0, _ALLOW)]
    blocks["socketpair"] = [_argument(1), (_AND, 0, 0, 0xF), *_if_equal(_STREAM, _ALLOW)]
    # Threads only.
    blocks["clone"] = [_argument(0), (_ANY_BIT, 3, 0, _CLONE_REFUSED), (_AND, 0, 0, _THREAD)]
    blocks["clone"] += _if_equal(_THREAD, _ALLOW)
    # Signals to the own process stay allowed: abort() and raise() need them. Not SIGKILL: that a process ended so is
    # how a lack of memory outside shows.
    blocks["tgkill"] = [
        _argument(0),
        (_EQUAL, 0, 3, struct.unpack("I", _ANY_PID)[0]),
        _argument(2),
        (_EQUAL, 1, 0, _SIGKILL),
        (_RETURN, 0, 0, _ALLOW),
    ]
    for name, block in blocks.items():
        yield (_EQUAL, 0, len(block) + 1, numbers[name])
        yield from block
        yield (_RETURN, 0, 0, _ERROR | _EPERM)
    # clone3 hides its flags behind a pointer; "not implemented" makes the C library fall back to clone.
    yield from _if_equal(numbers["clone3"], _ERROR | _ENOSYS)

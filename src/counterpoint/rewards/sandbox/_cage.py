"""Locking processes in: what each may see, use and do from a point in its life on."""

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from counterpoint.rewards.sandbox import _landlock, _linux, _seccomp


@dataclass(frozen=True)
class Cage:
    """How programs are kept apart on this machine.

    Attributes:
        namespaces: Whether the kernel gives each program its own user, process, mount and IPC namespace.
        uid: The unprivileged user id of the program when the fork server is root; None where it is an ordinary user.
        proc: A descriptor of ``/proc``, or -1.
        library: Folders of the standard library, readable for all.
        rules: Landlock's rules for supervisors and for judges.
        homes: Without namespaces: the folder that holds the programs' temporary directories.
        why: Why there are no namespaces; empty where there are.
    """

    namespaces: bool
    uid: int | None
    proc: int = -1
    library: Sequence[str] = ()
    rules: tuple[int, int] = (-1, -1)
    homes: str = ""
    why: str = ""


@dataclass(frozen=True)
class Confinement:
    """What is left to a process.

    Attributes:
        sockets: Descriptors that stay open, beside standard input and output, which lead nowhere.
        cpu_seconds: Processor time.
        memory_megabytes: Address space.
        file_megabytes: Size of a file it writes.
        threads: Threads of its user, those of other processes included.
        rules: What of the file system it may still reach: a descriptor from ``_landlock.ruleset``.
        output: A file that takes its standard output; empty for none.
        supervisor: Whether it may signal and watch other processes.
    """

    sockets: Sequence[int]
    cpu_seconds: int
    memory_megabytes: int
    file_megabytes: int = 0
    threads: int | None = None
    rules: int = -1
    output: str = ""
    supervisor: bool = False


def make_rules(cage: Cage, libraries: Sequence[str]) -> tuple[int, int]:
    """Landlock's rules for supervisors and for judges, made once. Neither sees the program's folder."""
    supervisor = _landlock.ruleset([], ["/dev/null", *([cage.homes] if cage.homes else [])], signals=True)
    folders = [*cage.library, *_linux.LIBRARY_FOLDERS, *sorted({os.path.dirname(path) for path in libraries})]  # noqa: PTH120
    return supervisor, _landlock.ruleset(folders, ["/dev/null"])


def program_rules(cage: Cage, home: str) -> int:
    """Landlock's rules for a program with the folder ``home``, made where that is mounted."""
    return _landlock.ruleset(_readable(cage), [home, *_linux.DEVICES]) if sys.platform == "linux" else -1


def _readable(cage: Cage) -> list[str]:
    return ["/"] if cage.namespaces else [*cage.library, *_linux.LIBRARY_FOLDERS]


def confine(what: Confinement) -> None:
    """Applies ``what`` to this process for good. Raises ``OSError`` where the kernel refuses what it must not."""
    null = os.open("/dev/null", os.O_RDWR)
    output = os.open(what.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if what.output else null
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    if sys.platform == "linux":
        _landlock.enforce(what.rules)
    _close_all_but(what.sockets)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGXFSZ, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    _set_limits(what)
    if sys.platform == "linux":
        _linux.drop_privileges()
        if _seccomp.is_available():
            with contextlib.suppress(OSError):  # a kernel without filters: the fork server has said so
                _seccomp.install(what.supervisor)


def _close_all_but(sockets: Sequence[int]) -> None:
    start = 3
    for descriptor in sorted(sockets):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, 1 << 16)


def _set_limits(what: Confinement) -> None:
    def limit(what: int, soft: int, hard: int | None = None) -> None:
        hard = soft if hard is None else hard
        try:
            resource.setrlimit(what, (soft, hard))
        except ValueError:  # a hard limit that is lower already cannot be raised, and need not be
            bound = resource.getrlimit(what)[1]
            resource.setrlimit(what, (min(soft, bound), bound))

    limit(resource.RLIMIT_CPU, what.cpu_seconds, what.cpu_seconds + 1)
    limit(resource.RLIMIT_FSIZE, what.file_megabytes << 20)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, 64)
    if sys.platform == "linux":
        limit(resource.RLIMIT_AS, what.memory_megabytes << 20)
        if what.threads is not None:
            limit(resource.RLIMIT_NPROC, what.threads)


def become(uid: int | None) -> None:
    """Changes to an unprivileged user for good; None stays."""
    if uid is None:
        return
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if sys.platform == "linux":
        # A change of user hides /proc/self from the process itself, which still has to write its user map there.
        _linux.prctl(_linux.PR_SET_DUMPABLE, 1)


def enter_root(uid: int | None, proc: int, library: Sequence[str], copied: Sequence[str], bound: Sequence[str]) -> None:
    """Namespaces without a network, and a root directory that holds only what Python needs; see ``_linux``.

    Where ``uid`` is None this process is no root, and needs a user namespace for it.
    """
    shared = _linux.CLONE_NEWNS | _linux.CLONE_NEWNET | _linux.CLONE_NEWIPC | _linux.CLONE_NEWUTS
    if uid is None:
        user, group = os.geteuid(), os.getegid()
        _linux.unshare(shared | _linux.CLONE_NEWUSER)
        _linux.map_identity(proc, user, group)
    else:
        _linux.unshare(shared)
    _linux.enter_private_root(list(library), list(copied), list(bound))


def die_with_parent() -> None:
    """Ends this process when its parent ends, and hides it from others of the same user."""
    if sys.platform == "linux":
        _linux.prctl(_linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        _linux.prctl(_linux.PR_SET_DUMPABLE, 0)


def enter_namespaces(cage: Cage) -> None:
    """New user, mount, process and IPC namespaces, as an unprivileged user; the next child is process 1."""
    become(cage.uid)
    uid, gid = os.geteuid(), os.getegid()
    _linux.unshare(_linux.CLONE_NEWUSER | _linux.CLONE_NEWNS | _linux.CLONE_NEWPID | _linux.CLONE_NEWIPC)
    _linux.map_identity(cage.proc, uid, gid)


def mount_folder(file_megabytes: int) -> None:
    """An empty ``/tmp`` in memory."""
    flags = _linux.MS_NOSUID | _linux.MS_NODEV | _linux.MS_NOEXEC
    _linux.mount("tmpfs", "/tmp", "tmpfs", flags, f"mode=0700,size={file_megabytes}m,nr_inodes=4096")


def end_of(pid: int, patience: float = 0.0) -> tuple[int, resource.struct_rusage] | None:
    """Status and use of a child of ours that has ended, or does within ``patience`` seconds; it is reaped."""
    end = time.monotonic() + patience
    while not (ended := os.wait4(pid, os.WNOHANG))[0]:
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)
    return ended[1], ended[2]


def killed_from_outside(status: int, usage: resource.struct_rusage, cpu_seconds: float) -> bool:
    """Whether something outside ended a confined process, most often the kernel for want of memory.

    None can send itself SIGKILL, and the kernel sends it only past the limit on processor time.
    """
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return killed and usage.ru_utime + usage.ru_stime < cpu_seconds


def reap(pid: int) -> None:
    """Ends a child of ours, unless it has been reaped already."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def end_before_others() -> None:
    """Where memory runs out, the kernel ends this process and what it starts before the training process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def threads_of_user() -> int:
    """Threads of this user now: without a user namespace the kernel counts them all against a limit."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*/task"):
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == os.getuid():
                total += sum(1 for _ in entry.iterdir())
    return total

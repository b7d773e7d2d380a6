"""One process per program: builds its cage, starts judge and program inside, kills everything at the end.

    zygote --fork--> supervisor --fork--> judge (process 1 of the cage: reads the tests, sends the verdicts)
                               \\--fork--> program (runs the code nobody trusts)

The judge is process 1 of the program's process namespace, so when it ends, or is killed, the kernel kills everything
else in there, fork bombs and daemons included, and the program's signals cannot reach it.
"""

import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from counterpoint.rewards.sandbox import _linux
from counterpoint.rewards.sandbox._frames import Gone, recv_frame, send_frame
from counterpoint.rewards.sandbox._judge import judge
from counterpoint.rewards.sandbox._limits import Limits
from counterpoint.rewards.sandbox._program import run_program


@dataclass(frozen=True)
class Cage:
    """How programs are kept apart on this machine.

    Attributes:
        namespaces: Whether the kernel gives each program its own user, process and mount namespace.
        uid: The unprivileged user id of the program when the zygote is root; None where it runs as an ordinary user.
        proc: A descriptor of ``/proc``, or -1.
        why: Why there are no namespaces; empty where there are.
    """

    namespaces: bool
    uid: int | None
    proc: int = -1
    why: str = ""


def supervise(client: socket.socket, cage: Cage) -> NoReturn:
    """Runs one program from the request in ``client`` to the last frame of its verdict, then exits."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        request = json.loads(recv_frame(client))
        limits = Limits(**request["limits"])
        home = _enter(cage, limits)
        with contextlib.suppress(Gone):
            outcome = _run(client, request["sources"], limits, cage)
            if home:
                shutil.rmtree(home, ignore_errors=True)
            send_frame(client, json.dumps({"end": outcome}).encode())
    except (Gone, OSError, ValueError) as error:
        with contextlib.suppress(Gone):
            send_frame(client, json.dumps({"end": f"the sandbox failed: {error}"}).encode())
    finally:
        os._exit(0)


def _enter(cage: Cage, limits: Limits) -> str:
    """Moves into the cage and into a fresh directory; returns the directory where we have to remove it ourselves."""
    if cage.namespaces:
        enter_namespaces(cage)
        size = f"mode=0700,size={limits.file_megabytes}m,nr_inodes=4096"
        _linux.mount("tmpfs", "/tmp", "tmpfs", _linux.MS_NOSUID | _linux.MS_NODEV, size)
        os.chdir("/tmp")
        return ""
    home = tempfile.mkdtemp(prefix="counterpoint-")
    if cage.uid is not None:
        os.chown(home, cage.uid, cage.uid)
    os.chdir(home)
    if sys.platform == "linux":
        _linux.prctl(_linux.PR_SET_CHILD_SUBREAPER, 1)
    return home


def enter_namespaces(cage: Cage) -> None:
    """New user, mount and process namespaces, as an unprivileged user; the next child is process 1 of the last."""
    _become(cage.uid)
    uid, gid = os.geteuid(), os.getegid()
    _linux.unshare(_linux.CLONE_NEWUSER | _linux.CLONE_NEWNS | _linux.CLONE_NEWPID)
    _linux.map_identity(cage.proc, uid, gid)


def _become(uid: int | None) -> None:
    if uid is None:
        return
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if sys.platform == "linux":
        # A change of user hides /proc/self from the process itself, which still has to write its user map there.
        _linux.prctl(_linux.PR_SET_DUMPABLE, 1)


def _run(client: socket.socket, sources: list[str], limits: Limits, cage: Cage) -> str:
    ours, theirs = socket.socketpair()
    judge_pid = os.fork()
    if judge_pid == 0:
        theirs.close()
        _judge_process(client, ours, cage)
    ours.close()
    program_pid = os.fork()
    if program_pid == 0:
        _program_process(client, theirs, sources, limits, cage)
    theirs.close()
    outcome = _wait(judge_pid, program_pid if cage.namespaces else -1, client, limits.wall_seconds)
    os.kill(judge_pid, signal.SIGKILL)
    if cage.namespaces:  # the judge's end takes the rest along, and waits until the program is reaped
        with contextlib.suppress(ChildProcessError):  # reaped already
            os.waitpid(program_pid, 0)
        os.waitpid(judge_pid, 0)
    else:
        os.waitpid(judge_pid, 0)
        _sweep(program_pid, cage.uid)
        os.waitpid(program_pid, 0)
    return outcome


def _judge_process(client: socket.socket, program: socket.socket, cage: Cage) -> NoReturn:
    random.seed(0)  # forking has drawn a new seed; programs and tests get the same random numbers every time
    # Orphans of the program end up here; ignoring the signal lets the kernel reap them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        if not cage.namespaces:
            _become(cage.uid and cage.uid + 1)
        if sys.platform == "linux":
            _linux.prctl(_linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            # Not readable and not traceable by the program, which has the same user id.
            _linux.prctl(_linux.PR_SET_DUMPABLE, 0)
        null = os.open("/dev/null", os.O_RDWR)
        for target in (0, 1, 2):
            os.dup2(null, target)
        judge(client, program)
    except Gone:
        pass
    finally:
        os._exit(0)


def _program_process(
    client: socket.socket, judge_socket: socket.socket, sources: list[str], limits: Limits, cage: Cage
) -> NoReturn:
    random.seed(0)
    try:
        client.close()
        os.setsid()
        if not cage.namespaces:
            _become(cage.uid)
        # In a namespace of its own the limit on processes counts the supervisor and the judge too.
        others = 2 if cage.namespaces else (0 if cage.uid is not None else _count_own_threads())
        run_program(judge_socket, sources, limits, others)
    finally:
        os._exit(1)


def _count_own_threads() -> int:
    """Threads of this user now: without a user namespace the kernel counts them all against the program's limit."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*/task"):
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == os.getuid():
                total += sum(1 for _ in entry.iterdir())
    return total


def _wait(judge_pid: int, program_pid: int, client: socket.socket, seconds: float) -> str:
    """Waits for the judge's end, the client's end or the end of the time; returns ``done`` for the first.

    ``program_pid`` (-1: leave it) is reaped as soon as it ends: the judge, process 1 of a namespace, cannot end while a
    zombie is left in there.
    """
    end = time.monotonic() + seconds
    if not hasattr(os, "pidfd_open"):
        while time.monotonic() < end:
            if os.waitid(os.P_PID, judge_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return "done"
            time.sleep(0.005)
        return "timeout"
    descriptors = {os.pidfd_open(pid): pid for pid in (judge_pid, program_pid) if pid > 0}
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    poll.register(client.fileno(), 0)  # 0: hang-up only
    while time.monotonic() < end:
        for descriptor, _ in poll.poll(max(0.0, end - time.monotonic()) * 1000):
            pid = descriptors.get(descriptor)
            if pid != program_pid:
                return "done" if pid == judge_pid else "abandoned"
            poll.unregister(descriptor)
            os.waitpid(program_pid, 0)
    return "timeout"


def _sweep(program_pid: int, uid: int | None) -> None:
    """Without a process namespace: kills the program's group, then whatever runs as its user or was left to us."""
    deadline = time.monotonic() + 2.0
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(program_pid, signal.SIGKILL)
    if uid is not None:
        killer = os.fork()
        if killer == 0:
            os.setresuid(uid, uid, uid)
            with contextlib.suppress(OSError):
                os.kill(-1, signal.SIGKILL)
            os._exit(0)
        os.waitpid(killer, 0)
    while time.monotonic() < deadline and _kill_orphans(program_pid):
        time.sleep(0.002)


def _kill_orphans(program_pid: int) -> bool:
    """Kills and reaps processes that were re-parented to us; tells whether there were any."""
    try:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    except OSError:
        return False
    orphans = [int(pid) for pid in children if int(pid) != program_pid]
    found = False
    for pid in orphans:
        with contextlib.suppress(OSError):
            if pid != program_pid and os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)
                found = True
    return found

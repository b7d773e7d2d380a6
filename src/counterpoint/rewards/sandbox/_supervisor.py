"""One process per program: builds its cage, starts judge and program inside, kills both at the end.

    fork server --fork--> supervisor --fork--> judge (process 1 of the cage: reads the tests, sends the verdicts)
                                     \\--fork--> program (runs the code nobody trusts)

The judge is process 1 of the program's process namespace, so when it ends, or is killed, the kernel kills everything
else in there. All three are locked in (``_cage``): none sees files but the standard library, none has a socket but
those drawn here.
"""

import contextlib
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
from typing import Any, NoReturn

from counterpoint.rewards.sandbox import _linux
from counterpoint.rewards.sandbox._cage import (
    Cage,
    Confinement,
    become,
    confine,
    die_with_parent,
    end_of,
    enter_namespaces,
    killed_from_outside,
    mount_folder,
    program_rules,
    reap,
    threads_of_user,
)
from counterpoint.rewards.sandbox._frames import Gone, recv_message, send_message
from counterpoint.rewards.sandbox._judge import judge
from counterpoint.rewards.sandbox._limits import Limits
from counterpoint.rewards.sandbox._program import serve_program, serve_reader

_OUT_OF_MEMORY, _PROGRAM_GONE = 3, 4
_SUPERVISOR_MEGABYTES = 512
_MEMORY = "most likely because the machine has no memory left"


@dataclass(frozen=True)
class _Task:
    """One program: the socket to the training process, the cage, the limits, the program's directory if any."""

    client: socket.socket
    cage: Cage
    limits: Limits
    home: str


def supervise(client: socket.socket, cage: Cage) -> NoReturn:
    """Runs one program from the request in ``client`` to the last frame of its verdict, then exits."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        request = recv_message(client)
        limits = Limits(**request["limits"])
        task = _Task(client, cage, limits, _prepare(cage, limits.file_megabytes))
        with contextlib.suppress(Gone):
            end = _run(task, request["sources"], request["reads"])
            if task.home:
                shutil.rmtree(task.home, ignore_errors=True)
            send_message(client, end)
    except (Gone, OSError, ValueError, MemoryError) as error:
        with contextlib.suppress(Gone):
            send_message(client, {"failed": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(0)


def _prepare(cage: Cage, file_megabytes: int) -> str:
    """Moves into the cage; returns the program's directory where we have to make and remove it ourselves."""
    if cage.namespaces:
        enter_namespaces(cage)
        if shares_folder(cage):
            mount_folder(file_megabytes)
        return ""
    home = tempfile.mkdtemp(dir=cage.homes)
    if cage.uid is not None:
        os.chown(home, cage.uid, cage.uid)
    return home


def shares_folder(cage: Cage) -> bool:
    """Whether the program's folder may be mounted where the judge stands: Landlock keeps the judge out of it.

    Otherwise the program needs a mount namespace of its own, which costs a millisecond.
    """
    return cage.rules[1] >= 0


def _run(task: _Task, sources: list[str], reads: bool) -> dict[str, Any]:
    ours, theirs = socket.socketpair()
    finished, finish = os.pipe()
    others = 0 if task.cage.namespaces or task.cage.uid is not None else threads_of_user()
    judge_pid = os.fork()
    if judge_pid == 0:
        theirs.close()
        _judge_process(task, ours, finish, others)
    ours.close()
    os.close(finish)
    try:
        program_pid = os.fork()
    except OSError:
        os.kill(judge_pid, signal.SIGKILL)
        raise
    if program_pid == 0:
        _program_process(task, theirs, sources, reads, others)
    theirs.close()
    _lock_myself_in(task, finished)
    end = _wait(task, finished, judge_pid, program_pid)
    reap(program_pid)
    reap(judge_pid)
    return end


def _lock_myself_in(task: _Task, finished: int) -> None:
    cage, sockets = task.cage, [task.client.fileno(), finished]
    if not cage.namespaces and cage.uid is not None:
        # The program's files as effective user, the right to end both processes from effective and real user.
        os.setgroups([])
        os.setresgid(cage.uid, cage.uid, cage.uid)
        os.setresuid(cage.uid + 1, cage.uid, cage.uid)
    if sys.platform == "linux":
        _linux.prctl(_linux.PR_SET_DUMPABLE, 0)
    seconds = int(task.limits.wall_seconds) + 10
    confine(Confinement(sockets, seconds, _SUPERVISOR_MEGABYTES, rules=cage.rules[0], supervisor=True))


def _judge_process(task: _Task, program: socket.socket, finish: int, others: int) -> NoReturn:
    random.seed(0)  # forking has drawn a new seed; programs and tests get the same random numbers every time
    code = 1
    try:
        os.chdir("/")
        if not task.cage.namespaces:
            become(task.cage.uid and task.cage.uid + 1)
        die_with_parent()
        limits = task.limits
        confine(
            Confinement(
                [task.client.fileno(), program.fileno(), finish],
                limits.cpu_seconds,
                limits.memory_megabytes,
                threads=limits.threads + 2 + others,
                rules=task.cage.rules[1],
            )
        )
        code = _judged(task.client, program)
    finally:
        os.write(finish, bytes([code]))
        signal.pause()  # the end of process 1 would end the program, and hide how it ended before
        os._exit(code)


def _judged(client: socket.socket, program: socket.socket) -> int:
    try:
        return 0 if judge(client, program) else _PROGRAM_GONE
    except Gone:  # what was wrong has been told, or nobody listens
        return 0
    except MemoryError:
        return _OUT_OF_MEMORY


def _program_process(
    task: _Task, judge_socket: socket.socket, sources: list[str], reads: bool, others: int
) -> NoReturn:
    random.seed(0)
    limits, cage, status = task.limits, task.cage, 1 if reads else 0
    try:
        os.setsid()
        if cage.namespaces:
            if not shares_folder(cage):
                _linux.unshare(_linux.CLONE_NEWNS)
                mount_folder(limits.file_megabytes)
            os.chdir("/tmp")
        else:
            os.chdir(task.home)
            become(cage.uid)
        die_with_parent()
        confine(
            Confinement(
                [judge_socket.fileno()],
                limits.cpu_seconds,
                limits.memory_megabytes,
                limits.file_megabytes,
                # In a user namespace of its own the limit counts the supervisor and the judge too.
                limits.threads + (2 if cage.namespaces else others),
                rules=program_rules(cage, task.home or "/tmp"),
                output=".output",
            )
        )
        if reads:
            status = serve_reader(judge_socket, sources)
        else:
            serve_program(judge_socket, sources)
    except Gone:
        pass
    except OSError as error:
        # Before "started" this is the sandbox's failure, and told as one; after it the judge reads no more of it.
        with contextlib.suppress(Gone):
            send_message(judge_socket, f"the program's process did not start ({error})")
    finally:
        os._exit(status)


def _wait(task: _Task, finished: int, judge_pid: int, program_pid: int) -> dict[str, Any]:
    """Waits for the judge's last word, the client's end or the end of the time; says what it was."""
    end = time.monotonic() + task.limits.wall_seconds
    poll = select.poll()
    poll.register(finished, select.POLLIN)
    poll.register(task.client.fileno(), 0)  # 0: hang-up only
    while time.monotonic() < end:
        for descriptor, _ in poll.poll(max(0.0, end - time.monotonic()) * 1000):
            if descriptor != finished:
                return {"end": "abandoned"}
            word = os.read(finished, 1)
            # A program that the judge saw vanish may still be on its way out.
            ended = end_of(program_pid, patience=1.0 if word == bytes([_PROGRAM_GONE]) else 0.0)
            # Without a word the judge has ended, and the program with it: how the judge ended is asked below.
            if word and ended and killed_from_outside(*ended, task.limits.cpu_seconds):
                return {"failed": f"a program was killed from outside the sandbox, {_MEMORY}"}
            if not word:
                reap(program_pid)  # process 1 of a namespace ends after all others are reaped
                return _sudden_end_of_judge(judge_pid, task.limits)
            return _end_of_judge(word[0]) | {"status": ended[0] if ended else -1}
    return {"end": "timeout"}


def _sudden_end_of_judge(pid: int, limits: Limits) -> dict[str, str]:
    _, status, usage = os.wait4(pid, 0)
    name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"code {os.WEXITSTATUS(status)}"
    # Process 1 of a namespace ignores SIGXCPU; past the limit on processor time the kernel ends it with SIGKILL.
    if killed_from_outside(status, usage, limits.cpu_seconds):
        return {"failed": f"the tests' process was killed, {_MEMORY}"}
    return {"end": f"the tests ended with {name}"}


def _end_of_judge(code: int) -> dict[str, str]:
    if code == _OUT_OF_MEMORY:
        return {"end": "the tests ran out of memory"}
    return {"end": "done"} if code in (0, _PROGRAM_GONE) else {"failed": f"the tests' process ended with code {code}"}

"""The fork server: a small clean interpreter that forks one supervisor per program.

Forking from here instead of from the training process is what makes a program cost milliseconds, and it keeps
everything the training process holds (memory, open files, environment) out of the tested code's reach. Started as
``python -s -S -P -B -c ...`` with an empty environment; file descriptor 0 is the control socket.
"""

import contextlib
import gc
import importlib
import itertools
import os
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from counterpoint.rewards.sandbox import _landlock, _linux, _seccomp
from counterpoint.rewards.sandbox._cage import (
    Cage,
    end_before_others,
    enter_namespaces,
    enter_root,
    make_rules,
    mount_folder,
)
from counterpoint.rewards.sandbox._frames import Gone, send_message
from counterpoint.rewards.sandbox._supervisor import supervise

# Imported once here, so that programs get them for nothing. Few: each costs every fork a little.
_PRELOADED = """
bisect collections contextlib copy functools heapq itertools json math operator random re string threading typing
"""
_FIRST_UID, _NUM_UIDS = 56_000, 2_000


def main() -> NoReturn:
    """Prepares the cage, says what it can promise, then forks a supervisor for every socket that arrives."""
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open("/dev/null", os.O_RDWR), 0)
    warnings.simplefilter("ignore")
    sys.path[:] = [path for path in sys.path if path and path != os.environ.get("COUNTERPOINT_SOURCE")]
    os.environ.clear()
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _PRELOADED.split():
        importlib.import_module(name)
    end_before_others()
    cage = prepare(asked_for_processes="processes" in sys.argv)
    send_message(control, {"namespaces": cage.namespaces, "why": cage.why, "walls": _walls()})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if sys.platform == "linux":
        _seccomp.prepare()
    gc.collect()
    gc.freeze()
    for slot in itertools.cycle(range(0, _NUM_UIDS, 2)):
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            break
        _serve(control, socket.socket(fileno=descriptors[0]), cage, slot)
    if cage.homes:
        shutil.rmtree(cage.homes, ignore_errors=True)
    os._exit(0)


def _serve(control: socket.socket, client: socket.socket, cage: Cage, slot: int) -> None:
    with client:
        try:
            if os.fork() == 0:
                control.close()
                supervise(client, replace(cage, uid=None if cage.uid is None else cage.uid + slot))
        except OSError as error:
            with contextlib.suppress(Gone):
                send_message(client, {"failed": f"no process could be started: {error}"})


def prepare(asked_for_processes: bool) -> Cage:
    """Enters the fork server's own namespaces where the kernel allows it; otherwise says why not."""
    uid = _FIRST_UID if os.geteuid() == 0 and _can_become(_FIRST_UID + _NUM_UIDS) else None
    library = _linux.standard_library()
    if sys.platform != "linux":
        return Cage(False, uid, library=library, homes=_homes(), why=f"{sys.platform} has no namespaces")
    cage = Cage(True, uid, os.open("/proc", os.O_RDONLY | os.O_DIRECTORY), library)
    libraries = _linux.shared_libraries()
    why = "COUNTERPOINT_SANDBOX=processes" if asked_for_processes else _trial(cage, libraries)
    if why:
        cage = replace(cage, namespaces=False, proc=-1, homes=_homes(), why=why + _library_problem(uid))
        return replace(cage, rules=make_rules(cage, libraries))
    _enter(cage, libraries)
    return replace(cage, rules=make_rules(cage, libraries))


def _homes() -> str:
    folder = tempfile.mkdtemp(prefix="counterpoint-")
    os.chmod(folder, 0o1733)  # noqa: PTH101 (each program's user removes its own directory, and lists no others)
    return folder


def _walls() -> list[str]:
    walls = ["system calls"] if sys.platform == "linux" and _seccomp.is_available() else []
    return [*walls, "landlock"] if sys.platform == "linux" and _landlock.version() else walls


def _library_problem(uid: int | None) -> str:
    """Says so when programs, as the user ``uid``, cannot read the standard library."""
    library = Path(os.__file__).resolve().parent
    folders = [library, *library.parents]
    if uid is None or all(folder.stat().st_mode & 0o001 for folder in folders):
        return ""
    return f"; unprivileged users cannot read {library}, so programs can import only {' '.join(_PRELOADED.split())}"


def _can_become(uid: int) -> bool:
    try:
        lines = Path("/proc/self/uid_map").read_text().splitlines()
    except OSError:
        return True
    return any(int(first) <= uid < int(first) + int(count) for first, _, count in (line.split() for line in lines))


def _enter(cage: Cage, libraries: list[str]) -> None:
    enter_root(cage.uid, cage.proc, cage.library, libraries, _linux.DEVICES)


def _trial(cage: Cage, libraries: list[str]) -> str:
    """Tries everything in a child, because a process that got half-way cannot go back. Returns what was refused."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        why = ""
        try:
            _enter(cage, libraries)
            enter_namespaces(cage)
            mount_folder(1)
        except (OSError, AttributeError) as error:
            why = str(error)
        finally:
            os.write(write_end, (why or "fine").encode())
            os._exit(0)
    os.close(write_end)
    why = os.read(read_end, 4096).decode()
    os.close(read_end)
    os.waitpid(pid, 0)
    return "" if why == "fine" else why or "the trial ended early"

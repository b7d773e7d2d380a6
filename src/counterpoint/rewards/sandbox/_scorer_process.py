"""A worker of ``_scorers``: imports one scorer, locks itself in, then forks a child for every request.

Standard input is the socket to the training process; when that hangs up, the worker ends, and its child with it.
Requests are pickles of the training process; answers are JSON, for a child may run what a model wrote.
"""

import contextlib
import gc
import importlib
import math
import os
import pickle
import select
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from counterpoint.rewards.sandbox import _landlock, _linux
from counterpoint.rewards.sandbox._cage import (
    Confinement,
    become,
    confine,
    die_with_parent,
    end_before_others,
    end_of,
    enter_root,
    killed_from_outside,
    reap,
)
from counterpoint.rewards.sandbox._frames import Gone, recv_frame, recv_message, send_message

_MEGABYTES = 2048
_UID = 58_500
_LARGEST = 1 << 53
_SHOWN = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/localtime"]

Scorer = Callable[[Any], Any]


def main() -> NoReturn:
    """Serves requests until the training process hangs up."""
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open("/dev/null", os.O_RDWR), 0)
    warnings.simplefilter("ignore")
    try:
        os.setsid()  # an interrupt from the terminal is the training process's to handle
        end_before_others()
        scorer, folders = _load(sys.argv[1])
        rules = _enter(folders)
    except (ImportError, OSError) as error:
        _say(control, {"failed": f"{type(error).__name__}: {error}"})
        os._exit(1)
    os.environ.clear()
    gc.collect()
    gc.freeze()
    _say(control, {"ready": True})
    while True:
        try:
            request, seconds = pickle.loads(recv_frame(control))
        except Gone:
            os._exit(0)
        _say(control, _answer(control, scorer, request, seconds, rules))


def _say(control: socket.socket, message: dict[str, Any]) -> None:
    try:
        send_message(control, message)
    except Gone:
        os._exit(0)


def _load(name: str) -> tuple[Scorer, list[str]]:
    """The scorer, and the folders that it and what it imported came from."""
    module, _, attribute = name.rpartition(":")
    make, data = getattr(importlib.import_module(module or "counterpoint.rewards._foreign"), attribute)
    scorer = make()
    files = [str(module.__file__) for module in sys.modules.values() if getattr(module, "__file__", None)]
    roots = [path for path in sys.path if path and any(file.startswith(path + "/") for file in files)]
    present = [os.path.realpath(path) for path in [*roots, *data()] if Path(path).is_dir()]
    return scorer, list(dict.fromkeys([*roots, *present]))


def _enter(folders: list[str]) -> int:
    """Shows this process only ``folders`` and the libraries, by namespaces or else by Landlock.

    Returns Landlock's rules for its children.
    """
    if sys.platform != "linux":
        return -1
    uid = _UID if os.geteuid() == 0 else None
    kept = [path for path in folders if Path(path).is_dir()]
    bound = [path for path in [*_SHOWN, *_linux.DEVICES, *kept] if Path(path).exists() and not Path(path).is_symlink()]
    library = _linux.standard_library()
    if os.environ.get("COUNTERPOINT_SANDBOX") != "processes" and _can_enter(uid, library, bound):
        _unshare_and_enter(uid, library, bound)
    else:
        _landlock.enforce(_landlock.ruleset([*library, *bound], _linux.DEVICES, signals=True))
    return _landlock.ruleset(["/"], _linux.DEVICES)


def _unshare_and_enter(uid: int | None, library: list[str], bound: list[str]) -> None:
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    enter_root(uid, proc, library, [], bound)
    os.close(proc)
    become(uid)


def _can_enter(uid: int | None, library: list[str], bound: list[str]) -> bool:
    """Tries it in a child, because a process that got half-way cannot go back."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _unshare_and_enter(uid, library, bound)
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def _answer(control: socket.socket, scorer: Scorer, request: Any, seconds: float, rules: int) -> dict[str, Any]:
    """The answer of a child to one request; ``False`` when its time or memory is up."""
    ours, theirs = socket.socketpair()
    try:
        pid = os.fork()
    except OSError as error:
        return {"failed": f"no process could be started: {error}"}
    if pid == 0:
        _score_and_exit(scorer, request, seconds, theirs, rules)
    theirs.close()
    with ours:
        message = _wait(control, ours, seconds)
    ended = end_of(pid, patience=0.5) if message is None else None
    reap(pid)
    if ended and killed_from_outside(*ended, seconds):
        return {"failed": "its process was killed from outside, most likely because the machine has no memory left"}
    return message or {"value": False}


def _wait(control: socket.socket, child: socket.socket, seconds: float) -> dict[str, Any] | None:
    """The child's answer; ``False`` when its time was up or it made no sense, None when it ended without one."""
    end = time.monotonic() + seconds
    poll = select.poll()
    poll.register(child.fileno(), select.POLLIN)
    poll.register(control.fileno(), 0)  # 0: hang-up only
    while time.monotonic() < end:
        for descriptor, _ in poll.poll(max(0.0, end - time.monotonic()) * 1000):
            if descriptor == control.fileno():
                os._exit(0)  # the child has asked to end with us
            child.settimeout(max(0.01, end - time.monotonic()))
            try:
                return _checked(recv_message(child))
            except Gone:
                return None
            except (ValueError, RecursionError):
                return {"value": False}
    return {"value": False}


def _checked(message: Any) -> dict[str, Any]:
    match message:
        case {"value": bool() | float() as value} if math.isfinite(value):
            return {"value": value}
        case {"value": int(value)} if abs(value) < _LARGEST:
            return {"value": value}
        case {"value": list(values)} if all(isinstance(value, bool) for value in values):
            return {"value": values}
        case {"failed": str(why)}:
            return {"failed": why[:300]}
    return {"value": False}


def _score_and_exit(scorer: Scorer, request: Any, seconds: float, result: socket.socket, rules: int) -> NoReturn:
    try:
        die_with_parent()
        confine(Confinement([result.fileno()], math.ceil(seconds) + 1, _MEGABYTES, rules=rules))
        message = {"value": scorer(request)}
    except (ImportError, OSError) as error:
        # No text makes these: something that the scorer needs is out of its reach.
        message = {"failed": f"{type(error).__name__}: {error}"}
    except BaseException:  # whatever else a scorer raises on a text, that text has earned nothing
        message = {"value": False}
    with contextlib.suppress(Gone, MemoryError, RecursionError):
        send_message(result, message)
    os._exit(0)

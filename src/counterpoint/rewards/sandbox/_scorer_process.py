"""A worker of ``_scorers``: imports one scorer, locks itself in, then forks confined children that answer requests.

Standard input is the socket to the training process; when that hangs up, the worker ends, and its child with it.
Requests are pickles of the training process; answers are JSON, for a child may run what a model wrote. A child answers
as many requests as its scorer allows (``Foreign.requests``), and none after one that took too long or failed.
"""

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
from typing import Any, NamedTuple, NoReturn

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
from counterpoint.rewards.sandbox._frames import Gone, recv_frame, recv_message, send_frame, send_message

_MEGABYTES = 2048
_UID = 58_500
# Algebra makes many objects and few cycles; a child lives too short to be filled by those.
_COLLECT_AFTER = 50_000
_LARGEST = 1 << 53
_SHOWN = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/localtime"]

Scorer = Callable[[Any], Any]


class Foreign(NamedTuple):
    """A scorer that is not ours.

    Attributes:
        make: Imports and warms what the scorer needs and returns it.
        data: Gives the folders of its data.
        requests: How many requests one child answers; more than one only where no text is ever run.
    """

    make: Callable[[], Scorer]
    data: Callable[[], list[str]] = list
    requests: int = 1


def main() -> NoReturn:
    """Serves requests until the training process hangs up."""
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open("/dev/null", os.O_RDWR), 0)
    warnings.simplefilter("ignore")
    try:
        os.setsid()  # an interrupt from the terminal is the training process's to handle
        end_before_others()
        scorer, requests, folders = _load(sys.argv[1])
        rules = _enter(folders)
    except (ImportError, OSError) as error:
        _say(control, {"failed": f"{type(error).__name__}: {error}"})
        os._exit(1)
    os.environ.clear()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    _say(control, {"ready": True})
    child: _Child | None = None
    while True:
        try:
            frame = recv_frame(control)
        except Gone:
            os._exit(0)
        seconds = pickle.loads(frame)[1]
        if child is not None and not child.is_fit(seconds):
            child.end()
            child = None
        try:
            child = child or _Child(scorer, requests, seconds, rules)
        except OSError as error:
            _say(control, {"failed": f"no process could be started: {error}"})
            continue
        _say(control, child.answer(control, frame))


def _say(control: socket.socket, message: dict[str, Any]) -> None:
    try:
        send_message(control, message)
    except Gone:
        os._exit(0)


def _load(name: str) -> tuple[Scorer, int, list[str]]:
    """The scorer, how many requests a child answers, and the folders that it and what it imported came from."""
    module, _, attribute = name.rpartition(":")
    foreign: Foreign = getattr(importlib.import_module(module or "counterpoint.rewards._foreign"), attribute)
    scorer = foreign.make()
    files = [str(module.__file__) for module in sys.modules.values() if getattr(module, "__file__", None)]
    roots = [path for path in sys.path if path and any(file.startswith(path + "/") for file in files)]
    present = [os.path.realpath(path) for path in [*roots, *foreign.data()] if Path(path).is_dir()]
    return scorer, foreign.requests, list(dict.fromkeys([*roots, *present]))


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


class _Child:
    """A confined copy of this process that answers requests.

    Arguments:
        scorer: What answers them.
        requests: How many it answers at most.
        seconds: For each of them.
        rules: Landlock's.
    """

    def __init__(self, scorer: Scorer, requests: int, seconds: float, rules: int) -> None:
        self._left, self._seconds, self._cpu_seconds = requests, seconds, requests * math.ceil(seconds)
        self._socket, theirs = socket.socketpair()
        try:
            self._pid = os.fork()
        except OSError:
            self._socket.close()
            theirs.close()
            raise
        if self._pid == 0:
            _serve(scorer, theirs, self._cpu_seconds, rules)
        theirs.close()

    def is_fit(self, seconds: float) -> bool:
        """Whether it may be asked with this time limit: it lives, waits, and has said nothing unasked."""
        return self._left > 0 and seconds == self._seconds and not select.select([self._socket], [], [], 0)[0]

    def answer(self, control: socket.socket, frame: bytes) -> dict[str, Any]:
        """Its answer to one request; ``False``, and its end, when its time or memory is up."""
        self._left -= 1
        self._socket.settimeout(self._seconds)
        try:
            send_frame(self._socket, frame)
            message = _wait(control, self._socket, self._seconds)
        except Gone:
            message = None
        if message and "value" in message and self._left:
            return message
        ended = end_of(self._pid, patience=0.5) if message is None else None
        self.end()
        if ended and killed_from_outside(*ended, self._cpu_seconds):
            return {"failed": "its process was killed from outside, most likely because the machine has no memory left"}
        return message or {"value": False}

    def end(self) -> None:
        self._left = 0
        self._socket.close()
        reap(self._pid)


def _wait(control: socket.socket, child: socket.socket, seconds: float) -> dict[str, Any] | None:
    """The child's answer; empty when its time was up or it made no sense, None when it ended without one."""
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
                return {}
    return {}


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
    return {}


def _serve(scorer: Scorer, control: socket.socket, cpu_seconds: int, rules: int) -> NoReturn:
    """Answers requests in a child until one fails."""
    try:
        die_with_parent()
        confine(Confinement([control.fileno()], cpu_seconds + 1, _MEGABYTES, rules=rules))
        while True:
            request, _ = pickle.loads(recv_frame(control))
            send_message(control, {"value": scorer(request)})
    except (ImportError, OSError) as error:
        # No text makes these: something that the scorer needs is out of its reach.
        _say(control, {"failed": f"{type(error).__name__}: {error}"})
    finally:  # whatever else a scorer raises on a text, that text has earned nothing
        os._exit(0)

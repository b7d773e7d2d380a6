"""Scorers that are not ours, in processes of their own: what a model wrote is parsed and evaluated there, never here.

    scorers("math").run([("1/2", "0.5")], seconds=3.0)      # [True]

A worker imports a scorer once, then gives up what it does not need (``_scorer_process``) and forks a child for every
request, which is killed when its time is up. So no request can disturb another, and a hostile one gains nothing but its
own score. Where texts are only parsed and never run (``math``), a child answers many requests, until one takes too long
or fails: a fork costs about as much as a comparison. Workers start when first needed and end with this process, also
when it is killed.
"""

import atexit
import contextlib
import os
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from counterpoint.errors import RewardError
from counterpoint.rewards.sandbox._frames import Gone, recv_message, send_frame
from counterpoint.rewards.sandbox._start import SOURCE, start_interpreter

# Importing a computer algebra system from a cold disk on a busy machine takes its time, once per worker.
_START_SECONDS = 120.0
_GRACE_SECONDS = 30.0
_BATCH_SECONDS = 300.0
_MAX_WORKERS = 4
_ATTEMPTS = 3
_START = "from counterpoint.rewards.sandbox._scorer_process import main; main()"


class Scorers:
    """The workers of one scorer.

    Arguments:
        name: A scorer of ``counterpoint.rewards._foreign``, or ``module:object`` of that form.
        size: How many workers; as many as there are processors, at most four, unless it is given.
    """

    def __init__(self, name: str, size: int = 0) -> None:
        self.name = name
        self.pid = os.getpid()
        self.size = size or min(_MAX_WORKERS, os.cpu_count() or 1)
        self._idle: SimpleQueue[_Worker | None] = SimpleQueue()
        for _ in range(self.size):
            self._idle.put(None)

    def run(self, requests: Sequence[Any], seconds: float, batch_seconds: float = _BATCH_SECONDS) -> list[Any]:
        """The scorer's answers, in order; ``False`` for a request that took longer than ``seconds`` or failed.

        ``None`` (no reward) for what had no turn within ``batch_seconds``, with a warning. Raises ``RewardError`` when
        workers cannot be started or are killed again and again.
        """
        if not requests:
            return []
        end = time.monotonic() + batch_seconds
        try:
            with ThreadPoolExecutor(self.size) as threads:
                answers = list(threads.map(lambda request: self._score(request, seconds, end), requests))
        except RuntimeError as error:  # a thread that cannot be started
            raise RewardError(f"The scorer {self.name!r} failed: {error}. Nothing was scored.") from None
        if missing := answers.count(None):
            warnings.warn(
                f"{missing} of {len(answers)} completions have no reward: scoring ({self.name}) took longer than "
                f"{batch_seconds:.0f} s for the batch.",
                RuntimeWarning,
                stacklevel=3,
            )
        return answers

    def _score(self, request: Any, seconds: float, end: float) -> Any:
        worker = self._idle.get()
        try:
            for _ in range(_ATTEMPTS):
                if time.monotonic() >= end:
                    return None
                worker = worker or _Worker(self.name)
                answer = worker.ask(request, seconds)
                if "value" in answer:
                    return answer["value"]
                worker.kill()
                worker = None
            raise RewardError(f"The scorer {self.name!r} failed: {answer['failed']}. Nothing was scored.")
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends the workers."""
        for _ in range(self.size):
            worker = self._idle.get()
            if worker is not None:
                worker.kill()
            self._idle.put(None)


class _Worker:
    def __init__(self, name: str) -> None:
        code = f"import sys; sys.path[:] = {[SOURCE, *filter(None, sys.path)]!r}; {_START}"
        kept = {key: os.environ[key] for key in ("HOME", "NLTK_DATA", "COUNTERPOINT_SANDBOX") if key in os.environ}
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            self._process, self._socket = start_interpreter([], code, name, single | kept, quiet=True)
        except OSError as error:
            raise RewardError(f"The scorer {name!r} could not be started: {error}.") from None
        started = self._receive(_START_SECONDS)
        if "ready" not in started:
            self.kill()
            raise RewardError(f"The scorer {name!r} did not start in a process of its own: {started['failed']}.")

    def ask(self, request: Any, seconds: float) -> dict[str, Any]:
        """``{"value": ...}``, or ``{"failed": why}`` when the worker must be replaced."""
        try:
            send_frame(self._socket, pickle.dumps((request, seconds)))
        except Gone as error:
            return {"failed": f"its process ended ({error})"}
        return self._receive(seconds + _GRACE_SECONDS)

    def _receive(self, seconds: float) -> dict[str, Any]:
        self._socket.settimeout(seconds)
        try:
            message: dict[str, Any] = recv_message(self._socket)
        except Gone as error:
            return {"failed": f"its process ended ({error})"}
        return message

    def kill(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()


_lock = threading.Lock()
_pools: dict[str, Scorers] = {}


def scorers(name: str) -> Scorers:
    """This process's workers of a scorer; a forked child makes its own instead of sharing its parent's sockets."""
    with _lock:
        if name not in _pools or _pools[name].pid != os.getpid():
            _pools[name] = Scorers(name)
        return _pools[name]


@atexit.register
def _close_at_exit() -> None:
    for pool in _pools.values():
        if pool.pid == os.getpid():
            with contextlib.suppress(OSError):
                pool.close()

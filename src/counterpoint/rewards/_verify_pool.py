"""Worker processes that compare mathematical expressions, and are killed when they take too long.

Plain subprocesses that speak JSON lines: they inherit nothing of the training process, whatever threads or devices it
has, and start the same way everywhere. They start when first needed and end with this process.
"""

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from counterpoint.errors import RewardError

# Importing a computer algebra system from a cold disk on a busy machine takes its time, once per worker.
_START_SECONDS = 120.0
_MAX_WORKERS = 4


def equivalent_all(pairs: Sequence[tuple[str, str]], timeout: float) -> list[bool]:
    """For each (reference, answer): whether math-verify finds them equal within ``timeout`` seconds."""
    if not pairs:
        return []
    distinct = list(dict.fromkeys(pairs))
    pool = _pool()
    with ThreadPoolExecutor(pool.size) as threads:
        verdicts = dict(zip(distinct, threads.map(lambda pair: pool.equivalent(pair, timeout), distinct), strict=True))
    return [verdicts[pair] for pair in pairs]


class _Worker:
    def __init__(self) -> None:
        source = str(Path(__file__).resolve().parents[2])
        code = (
            f"import sys; sys.path.insert(0, {source!r}); from counterpoint.rewards._verify_worker import main; main()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if self._read_line(_START_SECONDS) != b"ready\n":
            self.kill()
            raise RewardError("math-verify did not start in a worker process. Is it installed? pip install math-verify")

    def ask(self, pair: tuple[str, str], timeout: float) -> bool | None:
        """Whether the pair is equal; None when the worker hung or died, and must be replaced."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(pair).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None
        line = self._read_line(timeout)
        return line == b"true\n" if line else None

    def _read_line(self, timeout: float) -> bytes:
        # The worker writes one short line at a time, so a readable pipe holds a whole one.
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        return self._process.stdout.readline() if ready else b""

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class _Pool:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.size = min(_MAX_WORKERS, os.cpu_count() or 1)
        self._idle: SimpleQueue[_Worker | None] = SimpleQueue()
        for _ in range(self.size):
            self._idle.put(None)

    def equivalent(self, pair: tuple[str, str], timeout: float) -> bool:
        worker = self._idle.get()
        try:
            worker = worker or _Worker()
            answer = worker.ask(pair, timeout)
            if answer is None:
                worker.kill()
                worker = None
            return bool(answer)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        for _ in range(self.size):
            worker = self._idle.get()
            if worker is not None:
                worker.kill()
            self._idle.put(None)


_pools: list[_Pool] = []
_lock = threading.Lock()


def _pool() -> _Pool:
    """This process's pool; a forked child makes its own instead of sharing its parent's pipes."""
    with _lock:
        if not _pools or _pools[-1].pid != os.getpid():
            _pools[:] = [_Pool()]
        return _pools[-1]


@atexit.register
def _close_at_exit() -> None:
    if _pools and _pools[-1].pid == os.getpid():
        _pools[-1].close()

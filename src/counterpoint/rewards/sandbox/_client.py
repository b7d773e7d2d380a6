"""The training process's side of the sandbox: starts the fork server, hands it programs, reads verdicts."""

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from counterpoint.errors import RewardError
from counterpoint.rewards.sandbox._frames import Gone, recv_frame, send_frame
from counterpoint.rewards.sandbox._limits import Limits

# Time for starting, killing and cleaning up on a busy machine, on top of a program's own wall time.
_GRACE_SECONDS = 30.0
_START_SECONDS = 60.0
_START = "from counterpoint.rewards.sandbox._zygote import main; main()"


@dataclass(frozen=True)
class Program:
    """A program and its tests.

    Attributes:
        sources: Candidate texts, best first: the first that compiles is run.
        tests: Test texts, each run after the other; one passes when it raises nothing.
        setup: Run before the tests, where the tests are run: it sees the program's names.
    """

    sources: list[str]
    tests: tuple[str, ...]
    setup: str = ""


@dataclass(frozen=True)
class Verdict:
    """What became of a program.

    Attributes:
        passed: One flag per test, in order.
        outcome: ``done``, ``timeout``, or what went wrong with the sandbox itself.
        detail: The first failing test's error; empty when all passed.
    """

    passed: tuple[bool, ...]
    outcome: str = "done"
    detail: str = ""


@dataclass(frozen=True)
class Sandbox:
    """Runs programs, each in a cage of its own, several at a time.

    Arguments:
        limits: What one program may use.
        workers: Programs at a time; 0 means one per processor.
    """

    limits: Limits = field(default_factory=Limits)
    workers: int = 0

    def run(self, program: Program) -> Verdict:
        """Runs one program. Never raises for what the program does; ``RewardError`` when no sandbox can be started."""
        return _server().run(program, self.limits)

    def run_all(self, programs: Iterable[Program]) -> list[Verdict]:
        """Runs many programs, ``workers`` at a time; verdicts in the order of the programs."""
        with ThreadPoolExecutor(self.workers or os.cpu_count() or 1) as pool:
            return list(pool.map(self.run, programs))


class _Server:
    """One fork server of this process; it is started when first used and again whenever it died."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._warned = False
        self.why_weaker = ""

    def run(self, program: Program, limits: Limits) -> Verdict:
        for attempt in range(3):
            try:
                return self._run_once(program, limits)
            except Gone as error:
                # The server or the supervisor was killed from outside: that is not the program's failure.
                reason = str(error)
                if attempt:
                    self.stop()
        return Verdict((False,) * len(program.tests), f"the sandbox failed: {reason}", reason)

    def _run_once(self, program: Program, limits: Limits) -> Verdict:
        ours, theirs = socket.socketpair()
        with ours:
            ours.settimeout(limits.wall_seconds + _GRACE_SECONDS)
            self._hand_over(theirs)
            send_frame(ours, json.dumps({"sources": program.sources, "limits": asdict(limits)}).encode())
            send_frame(ours, json.dumps({"setup": program.setup, "tests": program.tests}).encode())
            return _read_verdict(ours, len(program.tests))

    def _hand_over(self, program_end: socket.socket) -> None:
        with program_end, self._lock:
            control = self._started()
            try:
                socket.send_fds(control, [b"p"], [program_end.fileno()])
            except OSError:
                self._stop()
                socket.send_fds(self._started(), [b"p"], [program_end.fileno()])

    def _started(self) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self._stop()
        self._control, theirs = socket.socketpair()
        source = str(Path(__file__).resolve().parents[3])
        prelude = f"import sys; sys.path.insert(0, {source!r}); "
        arguments = ["processes"] if os.environ.get("COUNTERPOINT_SANDBOX") == "processes" else []
        command = [sys.executable, "-s", "-S", "-P", "-B", "-c", prelude + _START, *arguments]
        environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "COUNTERPOINT_SOURCE": source}
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment, cwd="/"
            )
        self._control.settimeout(_START_SECONDS)
        try:
            hello = json.loads(recv_frame(self._control))
        except Gone as error:
            self._stop()
            raise RewardError(
                f"The code sandbox did not start ({error}); its own message is on standard error."
            ) from None
        self._control.settimeout(None)
        self.why_weaker = "" if hello["namespaces"] else hello["why"]
        if self.why_weaker and not self._warned:
            self._warned = True
            _warn(self.why_weaker)
        return self._control

    def stop(self) -> None:
        """Ends the server; programs under way end by themselves. The next run starts a new one."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.5)
            self._process.kill()
            self._process.wait()
            self._process = None


def _warn(why: str) -> None:
    warnings.warn(
        f"THE CODE SANDBOX IS WEAKER HERE: the kernel allows no namespaces ({why}). Programs written by the model "
        "can read what their user may read, and only a filter of system calls keeps them from the network. Run in a "
        "machine or container that allows user namespaces.",
        RuntimeWarning,
        stacklevel=2,
    )


def _read_verdict(sock: socket.socket, num_tests: int) -> Verdict:
    passed: list[bool] = []
    detail = ""
    while True:
        message = json.loads(recv_frame(sock))
        if "passed" in message:
            passed.append(message["passed"] is True)
            detail = detail or message["error"]
        elif "end" in message:
            missing = num_tests - len(passed)
            if missing:
                detail = detail or f"ended ({message['end']}) before test {len(passed)} was done"
            return Verdict((*passed, *[False] * missing), message["end"], detail)


_servers: list[_Server] = []
_servers_lock = threading.Lock()


def _server() -> _Server:
    """This process's fork server. After a fork the child has one of its own: two cannot share a control socket."""
    with _servers_lock:
        if not _servers or _servers[-1].pid != os.getpid():
            _servers[:] = [_Server()]
        return _servers[-1]


@atexit.register
def _stop_at_exit() -> None:
    if _servers and _servers[-1].pid == os.getpid():
        _servers[-1].stop()

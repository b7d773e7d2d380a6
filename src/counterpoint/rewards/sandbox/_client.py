"""The training process's side of the sandbox: starts the fork server, hands it programs, reads verdicts."""

import atexit
import contextlib
import itertools
import os
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from counterpoint.errors import RewardError
from counterpoint.rewards.sandbox._frames import MAX_FRAME, Gone, recv_message, send_message
from counterpoint.rewards.sandbox._limits import Limits
from counterpoint.rewards.sandbox._start import SOURCE, start_interpreter
from counterpoint.rewards.sandbox._tests import read_tests

# Time for starting, killing and cleaning up on a busy machine, on top of a program's own wall time.
_GRACE_SECONDS = 30.0
_START_SECONDS = 60.0
# A failing sandbox is tried again after these times: shortages of processes or memory often pass.
_PAUSES = (0.05, 0.2, 0.5, 1.0, 2.0)
_START = "from counterpoint.rewards.sandbox._zygote import main; main()"


@dataclass(frozen=True)
class Program:
    """A program and its tests.

    Attributes:
        sources: Candidate texts, best first: the first that compiles is run.
        tests: Test texts, each run after the other; one passes when it raises nothing.
        setup: Run before the tests, where the tests are run: it sees the program's names.
        helpers: Code of the row that tests use, run before ``setup`` where the tests are run.
        entry_point: A name that is asked of the program although ``helpers`` define it or it is a builtin's; for
            ``calls``, the function that is called, which may be a method of a class ``Solution``.
        kind: What a test is: a text that asserts; for ``calls``, the JSON of a function's arguments and of the results
            of which any is right; for ``reads``, the JSON of what the program reads and of what it must write.
    """

    sources: list[str]
    tests: tuple[str, ...]
    setup: str = ""
    helpers: str = ""
    entry_point: str = ""
    kind: Literal["asserts", "calls", "reads"] = "asserts"


@dataclass(frozen=True)
class Verdict:
    """What became of a program.

    Attributes:
        passed: One flag per test, in order.
        outcome: ``done``, ``timeout``, or how the tests' process ended.
        detail: The first failing test's error; empty when all passed.
        num_done: Tests that came to their end.
    """

    passed: tuple[bool, ...]
    outcome: str = "done"
    detail: str = ""
    num_done: int = 0


@dataclass(frozen=True)
class Sandbox:
    """Runs programs, each in a cage of its own, several at a time.

    Arguments:
        limits: What one program may use.
        workers: Programs at a time; 0 means one per processor.
        total_seconds: Time for all tests of a program that is started for each of them; what is left fails.
        whole: Whether such a program goes on after a test that failed.
    """

    limits: Limits = field(default_factory=Limits)
    workers: int = 0
    total_seconds: float = 60.0
    whole: bool = True

    def start(self) -> None:
        """Starts the fork server, unless it runs. Raises ``RewardError`` where no sandbox can be had."""
        _server().start()

    def run(self, program: Program) -> Verdict:
        """Runs one program. What the program does is a verdict; a sandbox that fails is a ``RewardError``."""
        return _server().run(program, self.limits) if program.kind == "asserts" else self._run_apart(program)

    def _run_apart(self, program: Program) -> Verdict:
        """Each test under limits of its own; outcome and detail are the last process's.

        A program that reads starts anew for each test, one that is called where a test ended it, with that test: only
        what ends a fresh program has failed by it.
        """
        passed, verdict = list[bool](), Verdict(())
        end = time.monotonic() + self.total_seconds
        while len(passed) < len(program.tests) and (self.whole or all(passed)) and time.monotonic() < end:
            tests = program.tests[len(passed) :]
            sizes = itertools.accumulate(2 * len(test) for test in tests)  # as JSON in JSON
            fit = 1 if program.kind == "reads" else max(1, sum(size <= MAX_FRAME // 2 for size in sizes))
            part = replace(program, tests=tests[:fit])
            verdict = _server().run(part, self.limits)
            passed += verdict.passed[: verdict.num_done] or (False,)
        return replace(verdict, passed=(*passed, *[False] * (len(program.tests) - len(passed))))

    def run_all(self, programs: Iterable[Program]) -> list[Verdict]:
        """Runs many programs, ``workers`` at a time; verdicts in the order of the programs."""
        try:
            with ThreadPoolExecutor(self.workers or os.cpu_count() or 1) as pool:
                return list(pool.map(self.run, programs))
        except RuntimeError as error:  # a thread that cannot be started
            raise _failure(str(error)) from None


class _FailedError(Exception):
    """The sandbox could not do its work; the message says why."""


class _Server:
    """One fork server of this process; it is started when first used and again whenever it died."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._warned = False
        self.why_weaker = ""

    def start(self) -> None:
        with self._lock:
            self._started()

    def run(self, program: Program, limits: Limits) -> Verdict:
        reason = ""
        for pause in _PAUSES:
            try:
                return self._run_once(program, limits)
            except Gone as error:
                # The server or the supervisor was killed from outside: that is not the program's failure.
                reason = f"its processes were killed ({error})"
            except (_FailedError, BlockingIOError, MemoryError) as error:
                reason = str(error) or "no memory is left"  # often a shortage that passes
            time.sleep(pause)
        raise _failure(reason)

    def _run_once(self, program: Program, limits: Limits) -> Verdict:
        ours, theirs = socket.socketpair()
        with ours:
            ours.settimeout(limits.wall_seconds + _GRACE_SECONDS)
            self._hand_over(theirs)
            reads = program.kind == "reads"
            send_message(ours, {"sources": program.sources, "limits": asdict(limits), "reads": reads})
            send_message(ours, _for_the_judge(program) | {"most": limits.file_megabytes << 20})
            return _read_verdict(ours, len(program.tests), reads)

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
        asked = os.environ.get("COUNTERPOINT_SANDBOX") == "processes"
        self._process, self._control = start_interpreter(
            ["-s", "-S"],
            f"import sys; sys.path.insert(0, {SOURCE!r}); {_START}",
            "processes" if asked else "",
            {"COUNTERPOINT_SOURCE": SOURCE},
            quiet=False,
        )
        self._control.settimeout(_START_SECONDS)
        try:
            hello = recv_message(self._control)
        except Gone as error:
            self._stop()
            raise RewardError(
                f"The code sandbox did not start ({error}); its own message is on standard error."
            ) from None
        self._control.settimeout(None)
        self.why_weaker = "" if hello["namespaces"] else hello["why"]
        if self.why_weaker and not asked:
            self._stop()
            raise RewardError(_no_namespaces(self.why_weaker, hello["walls"]))
        if self.why_weaker and not self._warned:
            self._warned = True
            _warn(hello["walls"])
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
                self._process.wait(timeout=3.0)
            self._process.kill()
            self._process.wait()
            self._process = None


def _for_the_judge(program: Program) -> dict[str, Any]:
    if program.kind != "asserts":
        fields = {"tests": program.tests, "setup": program.setup, "helpers": "", "modules": ()}
        return fields | {"names": ("Solution", program.entry_point), "kind": program.kind}
    use = read_tests(program.tests, program.setup, program.helpers, program.entry_point)
    fields = {"tests": program.tests, "setup": program.setup, "helpers": program.helpers}
    return fields | {"names": use.names, "modules": use.modules, "kind": program.kind}


def _failure(reason: str) -> RewardError:
    return RewardError(
        f"The code sandbox failed: {reason}. Nothing was scored. Free memory or processes (ulimit -u), or ask for "
        "fewer programs at a time (workers) or less memory for each (memory_megabytes)."
    )


def _no_namespaces(why: str, walls: list[str]) -> str:
    return (
        f"The code sandbox needs namespaces, which the kernel does not allow here ({why}). Run in a machine or "
        "container that allows them. COUNTERPOINT_SANDBOX=processes in the environment accepts a weaker sandbox with "
        f"{_kept(walls)}; docs/security.md says what it does not keep."
    )


def _kept(walls: list[str]) -> str:
    return " and ".join(["limits", *(f"a filter of {wall}" if wall != "landlock" else "Landlock" for wall in walls)])


def _warn(walls: list[str]) -> None:
    warnings.warn(
        f"THE CODE SANDBOX IS WEAKER HERE: COUNTERPOINT_SANDBOX=processes runs programs without namespaces, with "
        f"{_kept(walls)}. docs/security.md says what that does not keep.",
        RuntimeWarning,
        stacklevel=2,
    )


def _read_verdict(sock: socket.socket, num_tests: int, reads: bool) -> Verdict:
    passed: list[bool] = []
    detail = ""
    while True:
        message = recv_message(sock)
        if "failed" in message:
            raise _FailedError(message["failed"])
        if "passed" in message:
            passed.append(message["passed"] is True)
            detail = detail or message["error"]
        elif "end" in message:
            missing = num_tests - len(passed)
            if missing:
                detail = detail or f"ended ({message['end']}) before test {len(passed)} was done"
            elif reads and message.get("status") != 0:
                passed, detail = [False], detail or "the program did not end well: its status is not 0"
            return Verdict((*passed, *[False] * missing), message["end"], detail, len(passed))


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

"""The tested side: the process that runs the code nobody trusts, and answers the judge's questions about it.

It holds neither the tests nor the expected values: they are read by the judge, from a channel this process does not
have, after this process was started.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import sys
import types
from typing import Any, NoReturn

from counterpoint.rewards.sandbox import _linux, _seccomp
from counterpoint.rewards.sandbox._frames import Gone, send_frame
from counterpoint.rewards.sandbox._limits import Limits
from counterpoint.rewards.sandbox._peer import Peer

OUTPUT_FILE = ".output"


def run_program(sock: socket.socket, sources: list[str], limits: Limits, others: int) -> NoReturn:
    """Runs the first of ``sources`` that compiles, tells the judge its names and answers until the judge hangs up.

    Arguments:
        sock: The connection to the judge.
        sources: Candidate texts of the program, best first.
        limits: What the program may use.
        others: How many processes of the sandbox itself share the limit on processes.
    """
    try:
        _confine(sock, limits, others)
        module, problem = _execute(sources)
        names = {name: _module_name(value) for name, value in vars(module).items() if isinstance(name, str)}
        send_frame(sock, json.dumps({"problem": problem, "names": names}).encode())
        Peer(sock, vars(module), guarded=False).serve()
    except Gone:
        pass
    finally:
        os._exit(0)


def _module_name(value: Any) -> str | None:
    return value.__name__ if isinstance(value, types.ModuleType) else None


def _confine(sock: socket.socket, limits: Limits, others: int) -> None:
    descriptor = sock.fileno()
    null = os.open("/dev/null", os.O_RDONLY)
    output = os.open(OUTPUT_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, 4096)
    os.environ.clear()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGXFSZ, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    _set_limits(limits, others)
    if sys.platform == "linux":
        _linux.drop_privileges()
        if _seccomp.is_available():
            with contextlib.suppress(OSError):  # a kernel without filters: the zygote has said so
                _seccomp.install()


def _set_limits(limits: Limits, others: int) -> None:
    def limit(what: int, soft: int, hard: int | None = None) -> None:
        # A hard limit that is lower already cannot be raised, and need not be.
        _, ceiling = resource.getrlimit(what)
        hard = soft if hard is None else hard
        bound = hard if ceiling == resource.RLIM_INFINITY else min(hard, ceiling)
        resource.setrlimit(what, (min(soft, bound), bound))

    limit(resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 1)
    limit(resource.RLIMIT_FSIZE, limits.file_megabytes << 20)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, 64)
    if sys.platform == "linux":
        limit(resource.RLIMIT_AS, limits.memory_megabytes << 20)
        limit(resource.RLIMIT_NPROC, limits.processes + others)


def _execute(sources: list[str]) -> tuple[types.ModuleType, str]:
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    sys.argv = ["solution.py"]
    problem = ""
    for source in sources:
        try:
            code = compile(source, "solution.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError) as error:
            problem = problem or f"{type(error).__name__}: {error}"
            continue
        try:
            exec(code, vars(module))
        except BaseException as error:  # whatever the program raises is its failure, SystemExit included
            return module, f"{type(error).__name__}: {error}"[:1000]
        return module, ""
    return module, problem or "there is no code"

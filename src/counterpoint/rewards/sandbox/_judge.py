"""The trusted side: runs the tests, asking the tested process for every call of the code under test.

The verdict leaves through a socket that only this process holds, and each comparison happens here, on values received
by copy. So nothing the tested code prints, patches, overrides or inspects can count as a pass.
"""

import importlib
import json
import socket
import sys
import types
from typing import Any

from counterpoint.rewards.sandbox._frames import Gone, recv_frame, send_frame
from counterpoint.rewards.sandbox._peer import Peer

_DETAIL = 300


def judge(client: socket.socket, program: socket.socket) -> None:
    """Reads the tests from ``client``, judges the program behind ``program``, sends a frame per test to ``client``."""
    request = json.loads(recv_frame(client))
    peer = Peer(program)
    try:
        hello = json.loads(recv_frame(program))
        names: dict[str, str | None] = hello["names"]
        problem = str(hello["problem"])
    except (Gone, ValueError, KeyError, TypeError) as error:
        names, problem, peer.gone = {}, f"the program ended early ({error})", True
    namespace = _namespace()
    if not problem:
        sources = [request["setup"], *request["tests"]]
        problem = _bind(namespace, peer, names, sources) or _run(namespace, peer, request["setup"])
    for test in request["tests"]:
        failure = problem or _run(namespace, peer, test)
        _report(client, {"passed": not failure, "error": failure})
    _report(client, {"done": True})


def _report(client: socket.socket, message: dict[str, Any]) -> None:
    send_frame(client, json.dumps(message).encode())


def _namespace() -> dict[str, Any]:
    module = types.ModuleType("__tests__")
    sys.modules["__tests__"] = module
    return vars(module)


def _run(namespace: dict[str, Any], peer: Peer, source: str) -> str:
    """Runs one test; returns what went wrong, or nothing."""
    try:
        exec(compile(source, "tests.py", "exec", dont_inherit=True), namespace)
    except BaseException as error:  # a failing test may raise anything
        return f"{type(error).__name__}: {error}"[:_DETAIL]
    return "the program ended during the test" if peer.gone else ""


def _bind(namespace: dict[str, Any], peer: Peer, offered: dict[str, str | None], sources: list[str]) -> str:
    """Gives the tests those names of the program that they use; returns what went wrong, or nothing.

    A builtin keeps its meaning, or code under test could bring its own ``abs`` or ``all``; unless the tests use no
    other name of the program: then that builtin's name is what they test.
    """
    builtin_names = vars(importlib.import_module("builtins"))
    used = [name for name in _names_used(sources) if name in offered and not name.startswith("__")]
    own = [name for name in used if name not in builtin_names and offered[name] is None]
    for name in used:
        module = offered[name]
        try:
            if module is not None:
                if module.partition(".")[0] in sys.stdlib_module_names:
                    namespace[name] = importlib.import_module(module)
            elif name not in builtin_names or not own:
                namespace[name] = peer.request("name", name, (), {})
        except BaseException as error:  # the other side may answer with any exception, or not at all
            return f"{name}: {type(error).__name__}: {error}"[:_DETAIL]
    return ""


def _names_used(sources: list[str]) -> list[str]:
    names: dict[str, None] = {}
    pending: list[types.CodeType] = []
    for source in sources:
        try:
            pending.append(compile(source, "tests.py", "exec", dont_inherit=True))
        except (SyntaxError, ValueError):
            continue  # it is reported when it is run
    while pending:
        code = pending.pop()
        names.update(dict.fromkeys(code.co_names))
        pending += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return list(names)

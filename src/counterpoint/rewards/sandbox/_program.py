"""The tested side: the process that runs the code nobody trusts, and answers the judge's questions about it.

It holds neither the tests nor the expected values: they are read by the judge, from a channel this process does not
have, after this process was started. Whatever this code answers, or is made to answer, is only an answer.
"""

import atexit
import builtins
import functools
import importlib
import json
import os
import socket
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, NoReturn

from counterpoint.rewards.sandbox._errors import write_error
from counterpoint.rewards.sandbox._frames import recv_message, send_message
from counterpoint.rewards.sandbox._values import CONTAINERS, read, write

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, *args, **kwargs: target(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "type": type,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "getitem": lambda target, key: target[key],
    "setitem": lambda target, key, value: target.__setitem__(key, value),
    "str": str,
    "contains": lambda target, item: item in target,
    "enter": lambda target: type(target).__enter__(target),
    "exit": lambda target: type(target).__exit__(target, None, None, None),
}


def serve_program(sock: socket.socket, sources: list[str]) -> NoReturn:
    """Runs the first of ``sources`` that compiles, then answers the judge until it hangs up (``Gone``)."""
    send_message(sock, "started")
    module, problem, _ = _execute(sources, "solution")
    send_message(sock, problem)
    answers = _Answers(vars(module))
    while True:
        send_message(sock, answers.answer(recv_message(sock)))


def serve_reader(sock: socket.socket, sources: list[str]) -> int:
    """Runs the first of ``sources`` that compiles as a script between its input and its output, which are ``sock``.

    Returns its exit status, as an interpreter would.
    """
    send_message(sock, "started")
    for descriptor in (0, 1):
        os.dup2(sock.fileno(), descriptor)
    sock.close()
    atexit._clear()
    _, problem, error = _execute(sources, "__main__")
    if problem and not isinstance(error, SystemExit):
        print(problem, file=sys.stderr)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not stream.closed:
            stream.flush()
    if isinstance(error, SystemExit):
        return (error.code or 0) & 255 if isinstance(error.code, int | None) else 1
    return 1 if problem else 0


class _Answers:
    """Answers questions about the names of a module and about the objects that earlier answers mentioned."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        self._objects: dict[int, Any] = {}

    def answer(self, question: list[Any]) -> list[Any]:
        try:
            operation, target, packed_args, packed_kwargs = question
            args = [read(arg, self._referred) for arg in packed_args]
            value = write(self._perform(operation, target, args, read(packed_kwargs, self._referred)), self._refer)
            return ["ok", value, self._changes(args, packed_args)]
        except BaseException as error:  # code under test may raise anything, SystemExit included
            return ["raised", write_error(error, lambda value: write(value, self._refer))]

    def _perform(self, operation: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if operation == "name":
            return self._namespace[target]
        return _OPERATIONS[operation](read(target, self._referred), *args, **kwargs)

    def _changes(self, args: list[Any], packed: list[Any]) -> list[Any]:
        """What the call changed in the containers that were passed to it: ``[index, new value]``."""
        after = [(i, write(arg, self._refer)) for i, arg in enumerate(args) if isinstance(arg, CONTAINERS)]
        return [[i, node] for i, node in after if json.dumps(node) != json.dumps(packed[i])]

    def _refer(self, value: Any) -> Any:
        self._objects[id(value)] = value
        return {"mine": id(value)}

    def _referred(self, kind: str, body: Any) -> Any:
        if kind == "yours":
            return self._objects[body]
        module, name = body
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _execute(sources: list[str], name: str) -> tuple[types.ModuleType, str, BaseException | None]:
    module = types.ModuleType(name)
    sys.modules[name] = module
    sys.argv = ["solution.py"]
    sys.set_int_max_str_digits(0)  # the limit on processor time holds for long numbers too
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # the interpreter runs without ``site``
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
            return module, f"{type(error).__name__}: {error}"[:1000], error
        return module, "", None
    return module, problem or "there is no code", None

"""The trusted side: runs the tests and asks the tested process for every call of the code under test.

It trusts nothing of what comes back. The program cannot ask this process for anything: it only ever answers, with plain
values that are built here from JSON, or with numbers that stand for its own objects (``Handle``). So a test compares
builtin values with builtin values, and the verdict leaves through a socket that only this process holds.
"""

import ast
import contextlib
import functools
import importlib
import json
import signal
import socket
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from counterpoint.rewards.sandbox import _pytest
from counterpoint.rewards.sandbox._errors import built_error
from counterpoint.rewards.sandbox._frames import Gone, recv_frame, recv_message, send_message
from counterpoint.rewards.sandbox._outputs import same_output, same_value
from counterpoint.rewards.sandbox._values import CONTAINERS, MalformedError, decode, read, write

_DETAIL = 300
_MAX_DECIMALS = 125_000  # of integers as texts: no value of a program has more


class Handle:
    """Stands for an object of the program.

    It can be passed back, called, indexed, iterated, measured, printed, and have attributes: all of that happens in the
    program, and the answers are plain values or handles again. It never equals a plain value, it has no order and no
    arithmetic, and two of them are not compared: such answers would be the program's own word.
    """

    __slots__ = ("_number", "_program")
    _number: int
    _program: "ProgramSide"
    __doc__ = property(lambda self: self._program.ask("get", self, ("__doc__",)))  # type: ignore[assignment]

    def __init__(self, program: "ProgramSide", number: int) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._program.ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._program.ask("get", self, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.ask("set", self, (name, value))

    def __iter__(self) -> Iterator[Any]:
        iterator = self._program.ask("iter", self)
        if not isinstance(iterator, Handle):
            raise TypeError("iter() returned a plain value")
        while True:
            try:
                yield next(iterator)
            except StopIteration:
                return

    def __next__(self) -> Any:
        return self._program.ask("next", self)

    def __len__(self) -> int:
        return _exactly(int, self._program.ask("len", self))

    def __bool__(self) -> bool:
        return _exactly(bool, self._program.ask("bool", self))

    def __getitem__(self, key: Any) -> Any:
        return self._program.ask("getitem", self, (key,))

    def __setitem__(self, key: Any, value: Any) -> None:
        self._program.ask("setitem", self, (key, value))

    def __contains__(self, item: Any) -> bool:
        return _exactly(bool, self._program.ask("contains", self, (item,)))

    def __enter__(self) -> Any:
        return self._program.ask("enter", self)

    def __exit__(self, *_: object) -> None:
        # Never the program's own answer, which could swallow the failure of an assertion.
        self._program.ask("exit", self)

    def __str__(self) -> str:
        return _exactly(str, self._program.ask("str", self))

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Handle) and other is not self:
            raise TypeError("two objects of the program are not compared; compare plain values of theirs")
        return other is self

    def __hash__(self) -> int:
        return id(self)


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


class ProgramSide:
    """The program as the judge sees it: questions go out, answers come back.

    Attributes:
        gone: Whether the program ended or answered nonsense.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.gone = False
        self._sock = sock
        self._handles: dict[int, Handle] = {}

    def ask(self, operation: str, target: Handle | str, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Asks for one operation and waits for its value. Raises what it raised there, as an exception known here."""
        where = target if isinstance(target, str) else self._refer(target)
        packed = [self._write(arg) for arg in args]
        self._send([operation, where, packed, self._write(kwargs or {})])
        match self.receive():
            case ["ok", value, list(changes)]:
                answer = self._read(value)
                self._repeat(args, changes)
                return answer
            case ["raised", [[*names], [*held], str(text)]] if all(isinstance(name, str) for name in names):
                # The end of an iteration answers "next" alone: raised by a call, it would end a loop of the test's.
                raise built_error(names, self._read(held), text, ends=operation == "next")
        self._lose("a malformed answer")

    def receive(self) -> Any:
        """The next message of the program."""
        try:
            return decode(recv_frame(self._sock))
        except (Gone, MalformedError, MemoryError) as error:
            self._lose(str(error) or "an answer that is too large")

    def _send(self, message: Any) -> None:
        try:
            send_message(self._sock, message)
        except Gone as error:
            self._lose(str(error))

    def _lose(self, why: str) -> NoReturn:
        self.gone = True
        raise Gone(why)

    def _repeat(self, args: tuple[Any, ...], changes: list[Any]) -> None:
        """Does to our lists, dicts and sets what the call did to the program's copies of them."""
        for change in changes:
            match change:
                case [int(index), node] if 0 <= index < len(args):
                    original, changed = args[index], self._read(node)
                    if type(original) is type(changed):
                        _overwrite(original, changed)

    def _write(self, value: Any) -> Any:
        return write(value, self._refer)

    def _refer(self, value: Any) -> Any:
        if isinstance(value, Handle):
            return {"yours": value._number}
        if name := _name_in_library(value):
            return {"library": name}
        raise TypeError(f"a test passes a {type(value).__name__} to the program; only plain values can be passed")

    def _read(self, node: Any) -> Any:
        try:
            return read(node, self._handle)
        except MalformedError as error:
            self._lose(str(error))

    def _handle(self, kind: str, body: Any) -> Handle:
        if kind != "mine" or type(body) is not int:
            raise ValueError(f"unknown kind {kind!r}")
        if body not in self._handles:
            self._handles[body] = Handle(self, body)
        return self._handles[body]


def _name_in_library(value: Any) -> list[str]:
    """Module and name of a function or class of the standard library; empty for anything else."""
    module = getattr(value, "__module__", None) or getattr(getattr(value, "__objclass__", None), "__module__", None)
    name = getattr(value, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str) and module.partition(".")[0] in sys.stdlib_module_names:
        with contextlib.suppress(AttributeError):
            if functools.reduce(getattr, name.split("."), sys.modules.get(module)) is value:
                return [module, name]
    return []


class _Kinds(ast.NodeTransformer):
    """``type(x)`` and ``x.__class__`` as calls of ``_kind``, for a handle is of no class of the program."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "type" and len(node.args) == 1 and not node.keywords:
            node.func.id = "__kind__"
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr != "__class__" or not isinstance(node.ctx, ast.Load):
            return node
        return ast.Call(ast.Name("__kind__", ast.Load()), [node.value], [])


def _kind(value: Any) -> Any:
    return value._program.ask("type", value) if type(value) is Handle else type(value)


def _compiled(source: str) -> types.CodeType:
    if "type(" not in source and "__class__" not in source:
        return compile(source, "tests.py", "exec", dont_inherit=True)
    tree = ast.fix_missing_locations(_Kinds().visit(ast.parse(source)))
    return compile(tree, "tests.py", "exec", dont_inherit=True)


def _overwrite(original: Any, changed: Any) -> None:
    if isinstance(original, CONTAINERS):
        if isinstance(original, list | bytearray):
            original[:] = changed
        elif isinstance(original, deque):
            original.clear()
            original.extend(changed)
        else:
            original.clear()
            original.update(changed)


def judge(client: socket.socket, sock: socket.socket) -> bool:
    """Reads the tests from ``client``, judges the program behind ``sock``, sends a frame per test to ``client``.

    Tells whether the program was there to the end.
    """
    request = recv_message(client)
    sys.set_int_max_str_digits(_MAX_DECIMALS)
    program = ProgramSide(sock)
    namespace = _namespace()
    _start(program, client)
    if request["kind"] == "reads":
        return _judge_output(client, sock, request)
    problem = _problem_of(program) or _bind(namespace, program, request) or _run(namespace, program, request["setup"])
    for test in request["tests"]:
        run = _run if request["kind"] == "asserts" else functools.partial(_run_call, name=request["names"][1])
        failure = problem or run(namespace, program, test)
        if program.gone and not problem and request["kind"] == "calls":
            break  # this test and the rest are tried again, for the time of all may have ended the program
        _report(client, {"passed": not failure, "error": failure})
    return not program.gone


def _judge_output(client: socket.socket, sock: socket.socket, request: dict[str, Any]) -> bool:
    """Judges what a program writes; tells whether it goes on writing."""
    read, expected = json.loads(request["tests"][0])
    written, ended = exchange(sock, read.encode("utf-8", "surrogatepass"), request["most"])
    passed = ended and same_output(written.decode("utf-8", "replace"), expected)
    error = "another output" if ended else f"more output than {request['most']} bytes"
    _report(client, {"passed": passed, "error": "" if passed else error})
    return not ended


def exchange(sock: socket.socket, data: bytes, most: int) -> tuple[bytes, bool]:
    """Writes ``data`` and reads until the other side ends, or has written more than ``most`` bytes.

    Returns what was read and whether it was all. A side that does not read is no failure.
    """

    def feed() -> None:
        with contextlib.suppress(OSError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    threading.Thread(target=feed, daemon=True).start()
    read = bytearray()
    with contextlib.suppress(OSError):  # the other side ended without reading all
        while part := sock.recv(1 << 16):
            read += part
            if len(read) > most:
                return b"", False
    return bytes(read), True


def _start(program: ProgramSide, client: socket.socket) -> None:
    """Waits until the program was started."""
    try:
        started = program.receive()
    except Gone as error:
        # Before the first message nothing that the model wrote has run: the sandbox failed, not the program.
        _report(client, {"failed": f"the program's process did not start ({error})"})
        raise
    if started != "started":
        _report(client, {"failed": str(started)[:_DETAIL]})
        raise Gone(str(started)[:_DETAIL])


def _problem_of(program: ProgramSide) -> str:
    """Waits until the program has run; returns what went wrong with it, or nothing."""
    try:
        problem = program.receive()
    except Gone as error:
        return f"the program ended early ({error})"
    return problem if isinstance(problem, str) else "a malformed message"


def _report(client: socket.socket, message: dict[str, Any]) -> None:
    send_message(client, message)


def _namespace() -> dict[str, Any]:
    module = types.ModuleType("__tests__")
    sys.modules["__tests__"] = module
    vars(module)["__kind__"] = _kind
    _pytest.install()
    return vars(module)


def _run(namespace: dict[str, Any], program: ProgramSide, source: str) -> str:
    """Runs one test; returns what went wrong, or nothing."""
    return _attempt(program, lambda: exec(_compiled(source), namespace))


def _run_call(namespace: dict[str, Any], program: ProgramSide, test: str, name: str) -> str:
    """Calls the function, or the method of ``Solution``; returns what went wrong, or nothing."""

    def call() -> None:
        arguments, results = json.loads(test)
        try:
            function = getattr(namespace["Solution"](), name)
        except (KeyError, AttributeError):
            function = namespace[name]
        found = function(*arguments)
        assert any(same_value(found, result) for result in results), "another result"

    return _attempt(program, call)


def _attempt(program: ProgramSide, action: Callable[[], object]) -> str:
    try:
        action()
    except BaseException as error:  # a failing test may raise anything
        return _described(error)
    return "the program ended during the test" if program.gone else ""


def _described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:_DETAIL]
    except BaseException:  # its text may hold the program's objects, which are asked for theirs
        return type(error).__name__


def _bind(namespace: dict[str, Any], program: ProgramSide, request: dict[str, Any]) -> str:
    """Gives the tests the names they need: of the row's own code, of modules, of the program. Returns a problem.

    Which names come from where was decided from the texts of the tests, before the program was seen.
    """
    for module in request["modules"]:
        namespace[module] = importlib.import_module(module)
    problem = _run(namespace, program, request["helpers"])
    for name in request["names"] if not problem else ():
        try:
            namespace[name] = program.ask("name", name)
        except Gone as error:
            return f"the program ended early ({error})"
        except Exception:  # it has no such name: the test that uses it says so
            namespace.pop(name, None)
    return problem

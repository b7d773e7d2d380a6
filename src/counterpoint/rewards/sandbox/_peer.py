"""Values and questions between the sandbox's processes: plain values by copy, everything else by reference.

Two peers share one socket and may call each other, also while they wait for an answer. A value of a plain type
(numbers, text, containers of them) travels as JSON; anything else stays where it is and the other side holds a
``Remote``. JSON, not pickle or marshal: the bytes come from code nobody trusts, and reading them must never run or
corrupt anything.
"""

import builtins
import json
import socket
import types
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

from counterpoint.rewards.sandbox._frames import Gone, recv_frame, send_frame

_BUILTIN_CLASSES = {value for value in vars(builtins).values() if isinstance(value, type)}
_EXACT_INT = 1 << 53
_CONTAINERS = (list, dict, set, bytearray)


class RemoteError(Exception):
    """An exception of the other side whose class is not a builtin."""


class Remote:
    """Stands for an object of the other side.

    It can be called, indexed, iterated and have attributes. It never equals a plain value and has no arithmetic and no
    order: those answers would come from the code under test, which could then declare itself equal to anything.
    """

    __slots__ = ("_id", "_peer")
    _id: int
    _peer: "Peer"

    def __init__(self, peer: "Peer", id: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_id", id)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.request("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._peer.request("get", self, (name,), {})

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.request("set", self, (name, value), {})

    def __iter__(self) -> Iterator[Any]:
        return self._peer.request("iter", self, (), {})

    def __next__(self) -> Any:
        return self._peer.request("next", self, (), {})

    def __len__(self) -> int:
        return self._peer.request("len", self, (), {})

    def __bool__(self) -> bool:
        return bool(self._peer.request("bool", self, (), {}))

    def __getitem__(self, key: Any) -> Any:
        return self._peer.request("getitem", self, (key,), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self._peer.request("setitem", self, (key, value), {})

    def __str__(self) -> str:
        return str(self._peer.request("str", self, (), {}))

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and bool(self._peer.request("eq", self, (other,), {}))

    def __hash__(self) -> int:
        return hash((id(self._peer), self._id))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, *args, **kwargs: target(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "getitem": lambda target, key: target[key],
    "setitem": lambda target, key, value: target.__setitem__(key, value),
    "str": str,
    "eq": lambda target, other: bool(target == other),
}


class Peer:
    """One end of the conversation.

    Arguments:
        sock: The connected socket.
        namespace: The names that the other side may ask for (empty on the judge's side).
        guarded: Only calls of functions and public attributes of the tests' own objects are answered.
    """

    def __init__(self, sock: socket.socket, namespace: dict[str, Any] | None = None, guarded: bool = True) -> None:
        self.sock = sock
        self.namespace = namespace or {}
        self.guarded = guarded
        self.gone = False
        self._exports: dict[int, Any] = {}

    def request(self, operation: str, target: Remote | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Asks the other side and waits, answering its own questions meanwhile. Re-raises what it raised."""
        where = target if isinstance(target, str) else self.pack(target)
        self._send(["ask", operation, where, [self.pack(arg) for arg in args], self.pack(kwargs)])
        while True:
            message = self._receive()
            match message:
                case ["ok", value, list(changed)]:
                    for index, packed in changed:
                        _overwrite(args[index], self.unpack(packed))
                    return self.unpack(value)
                case ["raised", str(name), str(text)]:
                    _raise(name, text)
                case _:
                    self._answer(message)

    def serve(self) -> NoReturn:
        """Answers questions until the other side hangs up (``Gone``)."""
        while True:
            self._answer(self._receive())

    def _answer(self, message: Any) -> None:
        match message:
            case ["ask", str(operation), target, list(packed_args), packed_kwargs]:
                pass
            case _:
                self.gone = True
                raise Gone("a malformed message")
        try:
            args = [self.unpack(arg) for arg in packed_args]
            before = [
                json.dumps(node) if isinstance(arg, _CONTAINERS) else ""
                for arg, node in zip(args, packed_args, strict=True)
            ]
            value = self.pack(self._perform(operation, target, args, self.unpack(packed_kwargs)))
            after = [self.pack(arg) if isinstance(arg, _CONTAINERS) else "" for arg in args]
            changed = [[i, a] for i, (b, a) in enumerate(zip(before, after, strict=True)) if b and json.dumps(a) != b]
            reply = ["ok", value, changed]
        except BaseException as error:  # code under test may raise anything, SystemExit included
            if isinstance(error, Gone):
                raise
            reply = ["raised", type(error).__name__, str(error)[:1000]]
        self._send(reply)

    def _perform(self, operation: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if operation == "name":
            return self.namespace[target]
        subject = self.unpack(target)
        if self.guarded and not _is_open(subject, operation, args):
            raise PermissionError(f"{operation} is not answered by the tests")
        return _OPERATIONS[operation](subject, *args, **kwargs)

    def _send(self, message: Any) -> None:
        try:
            send_frame(self.sock, json.dumps(message).encode())
        except Gone:
            self.gone = True
            raise

    def _receive(self) -> Any:
        try:
            return json.loads(recv_frame(self.sock))
        except (Gone, ValueError, RecursionError) as error:
            self.gone = True
            raise Gone(str(error)) from None

    def pack(self, value: Any) -> Any:
        """The JSON form of ``value``; subclasses of plain types travel as the plain type."""
        match value:
            case None | bool() | float():
                return value if value is None or isinstance(value, bool) else float(value)
            case int():
                number = int(value)
                return number if -_EXACT_INT < number < _EXACT_INT else {"int": hex(number)}
            case str():
                return str.__str__(value)
            case Remote() if value._peer is self:
                return {"yours": value._id}
            case list():
                return [self.pack(item) for item in value]
            case tuple():
                return {"tuple": [self.pack(item) for item in value]}
            case dict():
                return {"dict": [[self.pack(key), self.pack(item)] for key, item in value.items()]}
            case set() | frozenset():
                name = "set" if isinstance(value, set) else "frozenset"
                return {name: [self.pack(item) for item in value]}
            case bytes() | bytearray():
                return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
            case complex():
                return {"complex": [value.real, value.imag]}
            case Decimal() | Fraction():
                return {"decimal" if isinstance(value, Decimal) else "fraction": str(value)}
            case range():
                return {"range": [value.start, value.stop, value.step]}
        if isinstance(value, type) and value in _BUILTIN_CLASSES:
            return {"class": value.__name__}
        if self.guarded and isinstance(value, types.ModuleType | types.FrameType):
            raise TypeError(f"a {type(value).__name__} is not passed to the code under test")
        self._exports[id(value)] = value
        return {"mine": id(value)}

    def unpack(self, node: Any) -> Any:
        """The value of a JSON form made by the other side's ``pack``."""
        if isinstance(node, list):
            return [self.unpack(item) for item in node]
        if not isinstance(node, dict):
            return node
        ((kind, body),) = node.items()
        match kind:
            case "mine":
                return Remote(self, int(body))
            case "yours":
                return self._exports[body]
            case "dict":
                return {self.unpack(key): self.unpack(item) for key, item in body}
            case "class":
                found = getattr(builtins, body)
                return found if isinstance(found, type) else None
            case "int":
                return int(body, 16)
            case "bytes" | "bytearray":
                raw = bytes.fromhex(body)
                return raw if kind == "bytes" else bytearray(raw)
            case "complex" | "range":
                return complex(*body) if kind == "complex" else range(*body)
            case "decimal" | "fraction":
                return Decimal(body) if kind == "decimal" else Fraction(body)
            case "tuple" | "set" | "frozenset":
                return getattr(builtins, kind)(self.unpack(item) for item in body)
        raise ValueError(f"unknown kind {kind!r}")


def _is_open(subject: Any, operation: str, args: list[Any]) -> bool:
    """Whether the judge lets the code under test do ``operation`` on one of the tests' own objects."""
    if operation in ("get", "set"):
        return type(subject).__module__ == "__tests__" and isinstance(args[0], str) and not args[0].startswith("_")
    return True


def _overwrite(original: Any, changed: Any) -> None:
    """Repeats on our copy of an argument what the other side's call did to its copy."""
    if type(original) is not type(changed):
        return
    match original:
        case list() | bytearray():
            original[:] = changed
        case dict() | set():
            original.clear()
            original.update(changed)


def _raise(name: str, text: str) -> NoReturn:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError | ExceptionGroup):
        raise kind(text)
    raise RemoteError(f"{name}: {text}")

"""Values on the wire between judge and program: plain values by copy, everything else as a number.

JSON, not pickle or marshal: the bytes come from code nobody trusts, and reading them must never run, import or build
anything but plain values. What ``read`` returns is exactly of the types below, or a named tuple of them.
"""

import datetime
import functools
import json
from array import array
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

_EXACT_INT = 1 << 53
_MAX_DIGITS = 100_000  # of integers and decimals; arithmetic on longer ones takes seconds
_FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (bool, dict, float, int, list, set, str, tuple)}
CONTAINERS = (list, dict, set, bytearray, deque)


@functools.lru_cache(64)
def _row_type(names: tuple[str, ...]) -> Any:
    """One class for all named tuples of these fields."""
    return namedtuple("Row", names)


class MalformedError(Exception):
    """Bytes that are no message."""


def write(value: Any, refer: Callable[[Any], Any]) -> Any:
    """The JSON form of ``value``; ``refer`` gives that of anything that is no plain value.

    Subclasses of plain types travel as the plain type.
    """
    match value:
        case None | bool():
            return value
        case float():
            return float(value)
        case int():
            number = int(value)
            return number if -_EXACT_INT < number < _EXACT_INT else {"int": hex(number)}
        case str():
            return str.__str__(value)
        case list():
            return [write(item, refer) for item in value]
        case tuple() if hasattr(value, "_fields"):
            return {"named": [[str(name) for name in value._fields], [write(item, refer) for item in value]]}
        case array():
            return {"array": [value.typecode, value.tolist()]}
        case UUID():
            return {"uuid": str(value)}
        case tuple():
            return {"tuple": [write(item, refer) for item in value]}
        case Counter():
            return {"counter": [[write(key, refer), write(item, refer)] for key, item in value.items()]}
        case OrderedDict():
            return {"ordered": [[write(key, refer), write(item, refer)] for key, item in value.items()]}
        case defaultdict():
            name = getattr(value.default_factory, "__name__", "")
            known = _FACTORIES.get(name) is value.default_factory
            items = [[write(key, refer), write(item, refer)] for key, item in value.items()]
            return {"defaultdict": [name if known else "", items]}
        case dict():
            return {"dict": [[write(key, refer), write(item, refer)] for key, item in value.items()]}
        case set() | frozenset():
            return {"set" if isinstance(value, set) else "frozenset": [write(item, refer) for item in value]}
        case bytes() | bytearray():
            return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
        case complex():
            return {"complex": [value.real, value.imag]}
        case Decimal():
            return {"decimal": str(value)}
        case Fraction():
            return {"fraction": [hex(value.numerator), hex(value.denominator)]}
        case range():
            return {"range": [hex(value.start), hex(value.stop), hex(value.step)]}
        case deque():
            return {"deque": [[write(item, refer) for item in value], value.maxlen]}
        case datetime.datetime() | datetime.date() | datetime.time():
            kinds = (datetime.datetime, datetime.date, datetime.time)
            return {next(kind.__name__ for kind in kinds if isinstance(value, kind)): str(value.isoformat())}
        case datetime.timedelta():
            return {"timedelta": [value.days, value.seconds, value.microseconds]}
        case PurePath():
            return {"path": str(value)}
    return refer(value)


def read(node: Any, refer: Callable[[str, Any], Any]) -> Any:
    """The value of a JSON form; ``refer(kind, body)`` gives that of a reference.

    Raises ``MalformedError`` for anything else, whatever the other side sent.
    """
    try:
        return _read(node, refer)
    except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise MalformedError(f"{type(error).__name__}: {error}"[:200]) from None


def _read(node: Any, refer: Callable[[str, Any], Any]) -> Any:
    if isinstance(node, list):
        return [_read(item, refer) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, body),) = node.items()
    match kind:
        case "dict":
            return {_read(key, refer): _read(item, refer) for key, item in body}
        case "tuple":
            return tuple(_read(item, refer) for item in body)
        case "named":
            names, items = body
            return _row_type(tuple(names))(*[_read(item, refer) for item in items])
        case "array":
            typecode, items = body
            return array(typecode, items)
        case "uuid":
            return UUID(body)
        case "set":
            return {_read(item, refer) for item in body}
        case "frozenset":
            return frozenset(_read(item, refer) for item in body)
        case "int":
            return _integer(body)
        case "bytes":
            return bytes.fromhex(body)
        case "bytearray":
            return bytearray.fromhex(body)
        case "complex":
            real, imaginary = body
            return complex(float(real), float(imaginary))
        case "decimal":
            return Decimal(str(body)[:_MAX_DIGITS])
        case "fraction":
            numerator, denominator = body
            return Fraction(_integer(numerator), _integer(denominator))
        case "counter":
            return Counter({_read(key, refer): _read(item, refer) for key, item in body})
        case "ordered":
            return OrderedDict((_read(key, refer), _read(item, refer)) for key, item in body)
        case "defaultdict":
            name, items = body
            filled = {_read(key, refer): _read(item, refer) for key, item in items}
            return defaultdict(_FACTORIES[name] if name else None, filled)
        case "deque":
            items, longest = body
            return deque([_read(item, refer) for item in items], None if longest is None else int(longest))
        case "datetime":
            return datetime.datetime.fromisoformat(body)
        case "date":
            return datetime.date.fromisoformat(body)
        case "time":
            return datetime.time.fromisoformat(body)
        case "timedelta":
            days, seconds, microseconds = body
            return datetime.timedelta(int(days), int(seconds), int(microseconds))
        case "path":
            return Path(str(body))
        case "range":
            start, stop, step = body
            return range(_integer(start), _integer(stop), _integer(step))
    return refer(kind, body)


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError("an integer of too many digits")
    return int(text, 16)


def decode(payload: bytes) -> Any:
    """What JSON bytes hold. Raises ``MalformedError``."""
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise MalformedError(str(error)[:200]) from None

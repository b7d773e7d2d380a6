"""YAML as plain data with the place of every key; duplicates refused, ``${VAR}`` filled in from the environment."""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from counterpoint.config.variables import Filled, Key, Written, escaped, fill, secret_texts
from counterpoint.inputs import MAX_DEPTH

__all__ = ["Document", "Key", "Problem", "dotted", "dump_yaml", "read_data", "read_yaml"]

MAX_BITS = 63
"""Of a whole number: what seeds, tensors and tables can hold."""
_PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null"))
_MAX_NODES = 100_000  # aliases of aliases can stand for more values than fit into memory
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_INT = re.compile(r"^[-+]?[0-9]+$|^0x[0-9a-fA-F]+$")


@dataclass(frozen=True)
class Problem:
    """One thing wrong: where (``file:line`` or the override), the key's path, and what is wrong with its remedy."""

    where: str
    path: Key
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, dotted(self.path), self.message) if part)


@dataclass
class Document:
    """A parsed file: ``data`` as plain Python, ``places`` from a key's path to where it stands, and the problems.

    ``filled`` lists what came from the environment.
    """

    data: Any = None
    name: str = "config"
    places: dict[Key, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    filled: list[Filled] = field(default_factory=list)

    def place(self, path: Key) -> str:
        """Where ``path``, or the nearest thing above it that was written, stands."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.name


def dotted(path: Key) -> str:
    """``("domains", "math", "reward", 0)`` as ``domains.math.reward.0``."""
    return ".".join(str(part) for part in path)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers (``1e-5`` is a number, ``1:30`` and dates are text) on top of PyYAML's safe loader."""


_Loader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, rule) for tag, rule in resolvers if not tag.endswith((":float", ":int", ":timestamp"))])
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = node.value
    number = int(text, 16) if text.lower().startswith("0x") else int(text)
    if number.bit_length() > MAX_BITS:
        raise ValueError(f"a whole number of more than {MAX_BITS} bits")
    return number


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_yaml(text: str, name: str, environment: Mapping[str, str] | None = None) -> Document:
    """The document in ``text``; a syntax error becomes its one problem, with line and column."""
    builder = _Builder(Document(name=name), os.environ if environment is None else environment)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        context = f" ({error.context})" if error.context else ""
        builder.document.problems.append(Problem(at, (), f"not valid YAML: {error.problem}{context}."))
        return builder.document
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        builder.document.problems.append(Problem(name, (), f"not valid YAML: {reason}."))
        return builder.document
    if node is not None:
        builder.loader = loader
        builder.document.data = builder.build(node, ())
    return builder.document


def read_data(data: Any, name: str) -> Document:
    """The document of plain ``data``. Values are taken as they are; only secrets may be given as ``${VAR}``."""
    builder = _Builder(Document(name=name), os.environ, where=name)
    builder.document.data = builder.with_secrets(data, (), set(secret_texts(data)))
    return builder.document


class _Builder:
    """Turns YAML nodes into plain data while noting places and problems in ``document``."""

    def __init__(self, document: Document, environment: Mapping[str, str], where: str | None = None) -> None:
        self.document = document
        self.environment = environment
        self.where = where
        self.loader = _Loader("")
        self._open: set[int] = set()
        self._count = 0

    def build(self, node: yaml.Node, path: Key) -> Any:
        self._count += 1
        if id(node) in self._open or self._count > _MAX_NODES:
            self._problem(node, path, "an alias that contains itself, or too many values. Write the values out.")
            return None
        if len(self._open) > MAX_DEPTH:
            self._problem(node, path[:3], f"nested more than {MAX_DEPTH} deep. Write it flatter.")
            return None
        self.document.places.setdefault(path, self._place(node))
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self._open.discard(id(node))

    def with_secrets(self, value: Any, path: Key, secrets: Collection[Key]) -> Any:
        """Plain data with the variables of its secrets filled in; all that leads to none is left as it is."""
        if path in secrets and isinstance(value, str) and "${" in value:
            return self._scalar(yaml.ScalarNode("tag:yaml.org,2002:str", value), path)
        if not any(secret[: len(path)] == path for secret in secrets):
            return value
        if isinstance(value, dict):
            return {key: self.with_secrets(item, (*path, key), secrets) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.with_secrets(item, (*path, index), secrets) for index, item in enumerate(value)]
        return value

    def _mapping(self, node: yaml.MappingNode, path: Key) -> dict[Any, Any]:
        data: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged = {**self._merge(value_node, path), **merged}
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "a key must be a plain name.")
                continue
            key = str(key_node.value)
            if key in data:
                first = self.document.places[(*path, key)]
                self._problem(key_node, (*path, key), f"written twice, first at {first}. Keep one.")
                continue
            self.document.places[(*path, key)] = self._place(key_node)
            data[key] = self.build(value_node, (*path, key))
        return {**merged, **data} if merged else data

    def _merge(self, node: yaml.Node, path: Key) -> dict[Any, Any]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[Any, Any] = {}
        for part in parts:
            value = self.build(part, path)
            if isinstance(value, dict):
                merged = {**value, **merged}
            else:
                self._problem(part, path, "`<<` can merge mappings only.")
        return merged

    def _scalar(self, node: yaml.Node, path: Key) -> Any:
        assert isinstance(node, yaml.ScalarNode)
        written: str | None = None
        if "${" in node.value and node.tag == "tag:yaml.org,2002:str":
            node, written = self._expand(node, path)
        if node.tag not in _PLAIN:
            self._problem(node, path, f"the tag {node.tag!r} is not read. Write plain text or a number.")
            return None
        try:
            value = self.loader.construct_object(node)  # type: ignore[no-untyped-call]
        except (yaml.YAMLError, ValueError, KeyError) as error:  # KeyError: `!!bool x`
            self._problem(node, path, f"cannot be read as YAML ({getattr(error, 'problem', error)}).")
            return None
        if written is not None:
            self.document.filled.append(Filled(path, value, Written(written, plain=node.style is None)))
        return value

    def _expand(self, node: yaml.ScalarNode, path: Key) -> tuple[yaml.ScalarNode, str | None]:
        """The node with its variables filled in, and as it is to be written again where any were set."""
        text, written, missing = fill(node.value, path, self.environment)
        for variable in missing:
            remedy = f"Set it, give a default as ${{{variable}:-value}}, or write $${{{variable}}} for the text."
            self._problem(node, path, f"the environment variable {variable} is not set. {remedy}")
        tag = self.loader.resolve(yaml.ScalarNode, text, (True, False)) if node.style is None else node.tag
        return yaml.ScalarNode(tag, text, node.start_mark, node.end_mark, node.style), written

    def _place(self, node: yaml.Node) -> str:
        return self.where or f"{self.document.name}:{node.start_mark.line + 1}"

    def _problem(self, node: yaml.Node, path: Key, message: str) -> None:
        self.document.problems.append(Problem(self._place(node), path, message))


def dump_yaml(data: Any) -> str:
    """``data`` as YAML that ``read_yaml`` reads back unchanged: keys in order, ``${`` kept as text.

    What was ``Written`` with variables is written as it was.
    """

    def ready(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: ready(item) for key, item in value.items()}
        if isinstance(value, list):
            return [ready(item) for item in value]
        return escaped(value) if type(value) is str else value

    return yaml.dump(ready(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes with the resolvers of ``_Loader``, so that text that looks like a number is quoted and stays text."""


def _represent_written(dumper: yaml.SafeDumper, text: Written) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style=None if text.plain else '"')


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
_Dumper.add_representer(Written, _represent_written)

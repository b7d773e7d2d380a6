"""YAML as plain data with the place of every key; duplicates refused, ``${VAR}`` filled in from the environment."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from counterpoint.config.variables import Filled, Key, Written, escaped, fill, secret_texts
from counterpoint.inputs import MAX_DEPTH

MAX_BITS = 63
"""Of a whole number: what seeds, tensors and tables can hold."""
_MAX_NODES = 100_000  # aliases of aliases can stand for more values than fit into memory
_TAG = "tag:yaml.org,2002:"
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

    def problem(self, path: Key, message: str) -> Problem:
        """What is wrong at ``path``, with its place."""
        return Problem(self.place(path), path, message)


def dotted(path: Key) -> str:
    """``("domains", "math", "reward", 0)`` as ``domains.math.reward.0``."""
    return ".".join(map(str, path))


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers (``1e-5`` is a number, ``1:30`` and dates are text) on top of PyYAML's safe loader."""


_Loader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, rule) for tag, rule in resolvers if not tag.endswith((":float", ":int", ":timestamp"))])
}
_Loader.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    number = int(node.value, 16 if node.value.lower().startswith("0x") else 10)
    if number.bit_length() > MAX_BITS:
        raise ValueError(f"a whole number of more than {MAX_BITS} bits")
    return number


_Loader.add_constructor(f"{_TAG}int", _construct_int)


def read_yaml(text: str, name: str) -> Document:
    """The document in ``text``; a syntax error becomes its one problem, with line and column."""
    document = Document(name=name)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        context = f" ({error.context})" if error.context else ""
        document.problems.append(Problem(at, (), f"not valid YAML: {error.problem}{context}."))
        return document
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        document.problems.append(Problem(name, (), f"not valid YAML: {reason}."))
        return document
    if node is not None:
        document.data = _Builder(document, loader).build(node, ())
    return document


def read_data(data: Any, name: str) -> Document:
    """The document of plain ``data``. Values are taken as they are; only secrets may be given as ``${VAR}``."""
    document = Document(data, name)
    for path in secret_texts(data):
        document.data = _with_secret(document, document.data, path, ())
    return document


def _with_secret(document: Document, data: Any, path: Key, done: Key) -> Any:
    """``data`` with the variables of the text at ``path`` filled in; what leads there is copied."""
    if not path:
        text, written, missing = fill(data, done)
        document.problems += [Problem(document.name, done, _unset(variable)) for variable in missing]
        if written is not None:
            document.filled.append(Filled(done, text, Written(written, plain=False)))
        return text
    key, below = path[0], path[1:]
    if isinstance(data, dict):
        return {**data, key: _with_secret(document, data[key], below, (*done, key))}
    assert isinstance(key, int)
    return [*data[:key], _with_secret(document, data[key], below, (*done, key)), *data[key + 1 :]]


def _unset(variable: str) -> str:
    remedy = f"Set it, give a default as ${{{variable}:-value}}, or write $${{{variable}}} for the text."
    return f"the environment variable {variable} is not set. {remedy}"


class _Builder:
    """Turns YAML nodes into plain data while noting places and problems in ``document``."""

    def __init__(self, document: Document, loader: _Loader) -> None:
        self.document, self.loader = document, loader
        self._count = 0

    def build(self, node: yaml.Node, path: Key, depth: int = 0) -> Any:
        self._count += 1
        if depth > MAX_DEPTH or self._count > _MAX_NODES:
            what = f"nested more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else f"more than {_MAX_NODES} values"
            self._problem(node, path[:3], f"{what}; an alias may contain itself or many others. Write it flatter.")
            return None
        self.document.places.setdefault(path, self._place(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Key, depth: int) -> dict[Any, Any]:
        data: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                parts = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for part in reversed(parts):
                    value = self.build(part, path, depth)
                    if isinstance(value, dict):
                        merged |= value
                    else:
                        self._problem(part, path, "`<<` can merge mappings only.")
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
            data[key] = self.build(value_node, (*path, key), depth)
        return {**merged, **data}

    def _scalar(self, node: yaml.ScalarNode, path: Key) -> Any:
        written: str | None = None
        if "${" in node.value and node.tag == f"{_TAG}str":
            text, written, missing = fill(node.value, path)
            for variable in missing:
                self._problem(node, path, _unset(variable))
            tag = self.loader.resolve(yaml.ScalarNode, text, (True, False)) if node.style is None else node.tag
            node = yaml.ScalarNode(tag, text, node.start_mark, node.end_mark, node.style)
        if node.tag not in [_TAG + kind for kind in ("str", "int", "float", "bool", "null")]:
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

    def _place(self, node: yaml.Node) -> str:
        return f"{self.document.name}:{node.start_mark.line + 1}"

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

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


_Dumper.add_representer(
    Written, lambda dumper, text: dumper.represent_scalar(f"{_TAG}str", str(text), style=None if text.plain else '"')
)

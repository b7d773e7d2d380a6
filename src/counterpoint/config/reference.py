"""The tables of the documentation: settings from the JSON schema, strategies from their classes.

``python -m counterpoint.config.reference docs`` writes them into the pages; a test says when they are out of date.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from counterpoint.config.schema import Config
from counterpoint.config.section import options_in
from counterpoint.config.training_keys import REFUSED_KEYS, REFUSED_PREFIXES
from counterpoint.registry import SEQUENTIAL, meaning, options_of, options_type

_BEGIN, _END = "<!-- tables, made by `python -m counterpoint.config.reference docs` -->\n", "<!-- end of the tables -->"
_TYPES = {"string": "text", "integer": "integer", "number": "number", "boolean": "boolean", "null": "null"}
_LIMITS = (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))


def settings() -> str:
    """Every key of a configuration: a table for each section."""
    schema = Config.model_json_schema()
    parts = []
    for title, section in _sections("", schema, schema["$defs"]):
        required = section.get("required", ())
        about = "" if section is schema else section["description"].partition("\n")[0] + "\n\n"
        fields = section["properties"].items()
        rows = [(f"`{key}`", *_row(node, schema["$defs"], key in required)) for key, node in fields]
        parts.append(f"## {title or 'Top level'}\n\n{about}{_table('key type default meaning', rows)}")
    refused = {**REFUSED_KEYS, **{f"{prefix}*": reason for prefix, reason in REFUSED_PREFIXES.items()}}
    training = _table("key instead", [(f"`{key}`", reason) for key, reason in refused.items()])
    return "\n".join([*parts, f"## Refused under `training`\n\n{training}"])


def strategies() -> str:
    """Every strategy, grouping and weighting."""
    from counterpoint.surgery import GROUPINGS, STRATEGIES, WEIGHTINGS  # late: it brings torch

    named = [(f"`{s.name}`", f"`{s.grouping}`", f"`{s.weighting}`", s.summary) for s in STRATEGIES.values()]
    stages = "one domain after another: a way to train, not a way to combine gradients"
    weightings = [(f"`{w.name}`", w.summary(), _options(w), _paper(w.paper)) for w in WEIGHTINGS.values()]
    return "\n".join(
        [
            _table("strategy groups weights what", [*named, (f"`{SEQUENTIAL}`", "", "", stages)]),
            _table("grouping groups", [(f"`{grouping.name}`", grouping.groups) for grouping in GROUPINGS.values()]),
            _table("weighting weights options paper", weightings),
        ]
    )


def balances() -> str:
    """Every rule of balance."""
    from counterpoint.balance import BALANCES

    rows = [(f"`{b.name}`", b.summary(), _options(b), _paper(b.paper)) for b in BALANCES.values()]
    return _table("balance what options paper", rows)


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": settings,
    "strategies.md": strategies,
    "weights.md": balances,
}
"""Page of the documentation -> its tables."""


def with_tables(page: str, tables: str) -> str:
    """The text of a page with its tables anew."""
    before, _, rest = page.partition(_BEGIN)
    return f"{before}{_BEGIN}\n{tables}\n{_END}{rest.partition(_END)[2]}"


def _sections(path: str, node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Title and schema of every mapping with fields, each once."""
    seen: set[str] = set()

    def walk(path: str, node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for option in options_in(node, definitions):
            if "properties" in option:
                kind = option["properties"].get("type", {}).get("const")
                if option["title"] not in seen:
                    seen.add(option["title"])
                    yield (f"`{path}`" if path else "") + (f", type `{kind}`" if kind else ""), option
                    for key, below in option["properties"].items():
                        yield from walk(f"{path}.{key}".strip("."), below)
            elif isinstance(option.get("additionalProperties"), dict):
                yield from walk(f"{path}.NAME", option["additionalProperties"])
            elif "items" in option:
                yield from walk(path, option["items"])

    yield from walk(path, node)


def _row(node: Mapping[str, Any], definitions: Mapping[str, Any], required: bool) -> tuple[str, str, str]:
    example = f" Example: `{_inline(node['examples'][0])}`." if node.get("examples") else ""
    texts = (item.get("description") for item in (node, *options_in(node, definitions)))  # of a section often its own
    default = "required" if required else _default(node)
    return _type(node, definitions), default, f"{next(filter(None, texts))}{example}"


def _default(node: Mapping[str, Any]) -> str:
    if "default" not in node:
        made = {"object": "`{}`", "array": "`[]`"}  # by a factory, of which the schema says nothing
        return made.get(node.get("type", ""), "required")
    value = node["default"]
    if isinstance(value, dict) and value:
        shorthand = value.get("name", value.get("path"))
        return f"`{shorthand}`" if shorthand else "its own defaults"
    return f"`{_inline(value)}`"


def _inline(value: Any) -> str:
    """``value`` as it is written on one line of YAML."""
    if isinstance(value, str):
        return json.dumps(value) if "\n" in value or "{" in value else value
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _type(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    options = list(options_in(node, definitions))
    limits = [
        f"{sign} {option[key]:,}" if isinstance(option[key], int) else f"{sign} {option[key]:g}"
        for option in options
        for key, sign in _LIMITS
        if key in option
    ]
    return ", ".join([" or ".join(dict.fromkeys(_name(option, definitions) for option in options)), *limits])


def _name(option: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "enum" in option or "const" in option:
        return " or ".join(f"`{value}`" for value in option.get("enum", [option.get("const")]))
    if option.get("type") == "array":
        inside = (_name(item, definitions) for item in options_in(option["items"], definitions))
        return f"list of {'/'.join(dict.fromkeys(inside))}"
    return "mapping" if option.get("type") == "object" else _TYPES.get(option.get("type", ""), "any")


def _options(weighting: type) -> str:
    """The options of a weighting with their types, limits and defaults."""
    types = options_type(weighting).json_schema()["properties"]
    lines = []
    for name, option in options_of(weighting).items():
        default = "required" if option.default is option.empty else _inline(option.default)
        lines.append(f"`{name}` ({_type(types[name], {})}; {default}): {meaning(option)}")
    return "<br>".join(lines)


def _paper(paper: str) -> str:
    return f"[{paper}](https://arxiv.org/abs/{paper})" if re.fullmatch(r"\d{4}\.\d{5}", paper) else paper


def _table(heads: str, rows: Sequence[tuple[str, ...]]) -> str:
    names = heads.split()
    lines = [f"| {' | '.join(line)} |\n" for line in (names, *rows)]
    return "".join([lines[0], f"|{'---|' * len(names)}\n", *lines[1:]])


if __name__ == "__main__":
    for name, tables in PAGES.items():
        page = Path(sys.argv[1], name)
        page.write_text(with_tables(page.read_text(encoding="utf-8"), tables()), encoding="utf-8")

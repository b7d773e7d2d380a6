"""MkDocs hooks: pages made from the code (commands, results), and links that lead out of ``docs/``.

``make docs`` calls them; they import counterpoint from ``src``.
"""

import importlib
import inspect
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

OUTSIDE = re.compile(r"\]\((?:\.\./)+(examples/[^)#]+|[A-Z]+\.md)\)")
"""Links of pages to files of the repository that are no pages."""


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Adds the pages made from code, and the example files that pages link to."""
    from mkdocs.structure.files import File

    schema = result_schema()
    made = {
        "cli.md": command_line(),
        "results.md": results_page(schema),
        "results.schema.json": json.dumps(schema, indent=2),
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for path in sorted((ROOT / "examples").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Links to example files lead to their copy in the site, and theirs to pages; bars in code inside tables need no
    backslash here.
    """
    if page.file.src_uri.startswith("api/"):
        markdown += hidden_functions(f"counterpoint.{Path(page.file.src_uri).stem}")
    up = "../" * page.file.src_uri.count("/")
    markdown = OUTSIDE.sub(lambda found: f"]({up}{found[1]})", markdown).replace("](../../docs/", "](../../")
    lines = (_without_escapes(line) if line.startswith("|") else line for line in markdown.split("\n"))
    return "\n".join(lines)


def on_post_build(config: "MkDocsConfig") -> None:
    """Refuses pages that load anything from a network, and removes the search's other languages, which none loads."""
    from mkdocs.exceptions import PluginError

    site = Path(config.site_dir)
    shutil.rmtree(site / "assets/javascripts/lunr", ignore_errors=True)
    if found := [f"{path}: {what}" for path in site.rglob("*") for what in loaded_from_elsewhere(path)]:
        raise PluginError("The site must be readable without a network. " + "\n".join(found))


def loaded_from_elsewhere(path: Path) -> list[str]:
    """Scripts, styles, pictures and fonts that a page or a style sheet loads from another host."""
    if path.suffix == ".html":
        pattern = r"<(?:script|link|img|iframe|source|video|object)\b[^>]*?\b(?:src|href|data)=\"?(?:https?:)?//[^>]*>"
    elif path.suffix == ".css":
        pattern = r"(?:@import\s+|url\()[\"']?(?:https?:)?//[^);]*"
    else:
        return []
    return re.findall(pattern, path.read_text(encoding="utf-8"))


def hidden_functions(package: str) -> str:
    """Directives for public functions with the name of their own module: mkdocstrings sees the module alone."""
    folder = ROOT / "src" / package.replace(".", "/")
    public = importlib.import_module(package) if folder.is_dir() else None
    names = [name for name in getattr(public, "__all__", ()) if (folder / f"{name}.py").exists()]
    options = "    options: {show_root_heading: true, show_root_toc_entry: true}"
    return "".join(f"\n\n::: {package}.{name}.{name}\n{options}\n" for name in names)


def _without_escapes(row: str) -> str:
    return re.sub(r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"), row)


def command_line() -> str:
    """Every command with its arguments and options, from the program itself."""
    import typer

    from counterpoint.cli.app import app

    parts = ["# Command line", "This page is made from the program; `counterpoint COMMAND --help` says the same."]
    for name, command in _leaves("counterpoint", typer.main.get_command(app)):
        context = command.context_class(command)
        usage = " ".join([name, *command.collect_usage_pieces(context)])
        parts += [f"## {name}", f"```text\n{usage}\n```", _paragraphs(inspect.cleandoc(command.help or ""))]
        records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
        rows = [f"| `{names}` | {_cell(text)} |" for names, text in filter(None, records)]
        parts.append("\n".join(["| argument or option | meaning |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, below in command.commands.items():
        if not below.hidden:
            yield from _leaves(f"{name} {word}", below)


def _paragraphs(text: str) -> str:
    """The help text as Markdown: indented lines and shown commands are code."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", text.replace("\b", "")):
        lines = paragraph.strip("\n").split("\n")
        if all(line.startswith("  ") or line.startswith("counterpoint ") for line in lines):
            parts.append("```bash\n" + "\n".join(line.strip() for line in lines) + "\n```")
        else:
            parts.append("\n".join(line.strip() for line in lines))
    return "\n\n".join(parts).replace("```\n\n```bash\n", "")


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def result_schema() -> dict[str, Any]:
    """A JSON schema of every class below ``counterpoint.results.Result``, by the type hints of its fields."""
    from counterpoint.results import VERSION

    definitions: dict[str, Any] = {}
    kinds = {}
    for cls in _results():
        named = _named(cls, definitions)
        head = {"schema": {"const": f"counterpoint.{cls.kind}"}, "version": {"const": VERSION}}
        definition = definitions[cls.__name__]
        definition["properties"] = head | definition["properties"]
        kinds[cls.kind] = named
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "oneOf": [*kinds.values()], "$defs": definitions}


def _results() -> list[Any]:
    """The classes below Result, of the modules whose text names it."""
    from counterpoint.results import Result

    for path in sorted((ROOT / "src").rglob("*.py")):
        if re.search(r"^class .*\bResult\)", path.read_text(), re.MULTILINE):
            importlib.import_module(".".join(path.relative_to(ROOT / "src").with_suffix("").parts))
    found = {cls.kind: cls for cls in _below(Result) if not inspect.isabstract(cls)}
    return [found[kind] for kind in sorted(found)]


def _below(cls: type) -> Iterator[Any]:
    for child in cls.__subclasses__():
        yield child
        yield from _below(child)


def _named(cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    import dataclasses
    import typing

    if cls.__name__ not in definitions:
        definitions[cls.__name__] = {}  # it may hold itself
        hints = typing.get_type_hints(cls)
        fields = {field.name: _node(hints[field.name], definitions) for field in dataclasses.fields(cls)}
        definitions[cls.__name__] = {
            "type": "object",
            "description": inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " "),
            "properties": fields,
        }
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _node(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one type as ``counterpoint.results.plain`` writes its values."""
    import collections.abc
    import dataclasses
    import types
    import typing

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    plain = {int: "integer", str: "string", bool: "boolean", Path: "string"}
    if dataclasses.is_dataclass(kind):
        return _named(kind, definitions)
    if kind is float:
        return {"type": ["number", "null"]}  # null: not a number or infinite
    if kind in plain:
        return {"type": plain[kind]}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [{"type": "null"} if a is type(None) else _node(a, definitions) for a in arguments]}
    if origin is typing.Literal:
        return {"enum": [*arguments]}
    if origin in (dict, collections.abc.Mapping):
        return {"type": "object", "additionalProperties": _node(arguments[1], definitions)}
    if origin in (list, collections.abc.Sequence) or (origin is tuple and arguments[1:] == (Ellipsis,)):
        return {"type": "array", "items": _node(arguments[0], definitions)}
    if origin is tuple:
        return {"type": "array", "prefixItems": [_node(a, definitions) for a in arguments]}
    return {"type": "array"} if getattr(kind, "__name__", "") in ("Tensor", "ndarray") else {}


RESULTS = """# Results as JSON

Commands write what they found as JSON, and so does `found.write(path)` in Python. This page and the
[JSON schema](results.schema.json) are made from the classes in the code. A number that could not be computed is
`null`; a tensor is a nested list. Every file begins with `schema` (`counterpoint.KIND`) and `version`, which rises when
a field is renamed, is removed, or changes its meaning. `counterpoint.results.of_plain(CLASS, json.loads(text))` reads a
file back with its types.
"""


def results_page(schema: dict[str, Any]) -> str:
    """One table of fields for every class that a result holds, results first."""
    roots = [node["$ref"].rpartition("/")[2] for node in schema["oneOf"]]
    parts = [RESULTS]
    for name in [*roots, *sorted(set(schema["$defs"]) - set(roots))]:
        definition = schema["$defs"][name]
        parts.append(f"## {name}\n\n{definition['description']}\n")
        rows = [f"| `{field}` | {_type(node)} |" for field, node in definition["properties"].items()]
        parts.append("\n".join(["| field | type |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _type(node: dict[str, Any]) -> str:
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "anyOf" in node:
        return " or ".join(_type(option) for option in node["anyOf"])
    if "prefixItems" in node:
        return "(" + ", ".join(_type(item) for item in node["prefixItems"]) + ")"
    if "items" in node:
        return f"list of {_type(node['items'])}"
    if "additionalProperties" in node:
        return f"object: name to {_type(node['additionalProperties'])}"
    kind = node.get("type", "any")
    return " or ".join(kind) if isinstance(kind, list) else kind

"""One sentence for each problem that pydantic finds: what is wrong, what was found, what to write instead."""

from typing import Any

from counterpoint.config.base import Section
from counterpoint.config.fields import field_at, section_at, strip_tags
from counterpoint.config.sources import SOURCES
from counterpoint.errors import nearest
from counterpoint.masking import masked, masked_data

_SHORT = 80  # characters of a found value that are shown


def sentence(root: type[Section], details: Any) -> str:
    """The message for one entry of ``ValidationError.errors()``."""
    location, kind, found = details["loc"], details["type"], details.get("input")
    path = strip_tags(location)
    key = path[-1] if path else ""
    if kind == "extra_forbidden":
        section = section_at(root, location[:-1])
        return f"unknown key. {nearest(str(key), section.model_fields) if section else 'Remove it.'}"
    if kind == "missing":
        return f"is missing. {_remedy(root, location)}"
    if kind == "union_tag_not_found":
        return f"needs a type. Write one of: {', '.join(SOURCES)}."
    if kind == "union_tag_invalid":
        return f"unknown type {found.get('type')!r}: {nearest(str(found.get('type')), SOURCES)}"
    if location[-1:] == ("[key]",):
        return "is no domain name. Use lower-case letters, digits, `_` and `-`."
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        what = "source" if "source" in path[-2:] else "mapping"
        return f"expected a {what}, found {_show(found)}. {_remedy(root, location)}"
    rule = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{rule}, found {_show(found)}. {_remedy(root, location)}"


def _show(found: Any) -> str:
    text = masked(repr(masked_data(found)))
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."


def _remedy(root: type[Section], location: Any) -> str:
    """What the key is for, and an example; empty where the schema knows no such field."""
    info = field_at(root, location)
    if info is None:
        return ""
    example = f" For example: {info.examples[0]!r}." if info.examples else ""
    return f"{info.description}{example}"

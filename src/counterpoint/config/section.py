"""What the sections of a file share: their base class and types, and a sentence for what pydantic finds in one."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from counterpoint.config.variables import Key
from counterpoint.errors import nearest, shown
from counterpoint.registry import rule_of

MAX_NAME = 100
"""Characters of a name that becomes a part of file names, beside other parts."""

MAX_COUNT = 10_000_000
"""Of rows that are made, of prompts and of completions: what is more would never end."""

LARGEST_SEED = 2**32 - 1
"""What NumPy takes for a seed."""


def _fits_disks(path: str) -> str:
    if any(len(part.encode()) > 255 for part in path.split("/")) or len(path.encode()) > 4000:
        raise ValueError("should have no part of more than 255 bytes, and fewer than 4000 in all")
    return path


DomainName = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$", max_length=MAX_NAME)]
Path = Annotated[str, Field(min_length=1), AfterValidator(_fits_disks)]
Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """One mapping of the file: immutable, every key known, every field described."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, use_attribute_docstrings=False)


def explained(root: type[Section], details: Any) -> tuple[Key, str]:
    """Key path and message for one entry of ``ValidationError.errors()``: what is wrong, what was found, what to do."""
    path, about, known = _placed(root, details["loc"])
    kind, found, tags = details["type"], details.get("input"), tags_in(about)
    example = f" For example: {about['examples'][0]!r}." if about.get("examples") else ""
    remedy = about.get("description", "") + example
    if kind == "extra_forbidden":
        return path, f"unknown key. {nearest(str(path[-1]), known)}"
    if kind == "missing":
        return path, f"is missing. {remedy}"
    if kind == "union_tag_not_found":
        return path, f"needs a type. Write one of: {', '.join(tags)}."
    if kind == "union_tag_invalid":
        return path, f"unknown type {found.get('type')!r}: {nearest(str(found.get('type')), tags)}"
    if details["loc"][-1:] == ("[key]",):
        return path, "is no domain name. Use lower-case letters, digits, `_` and `-`."
    rule = rule_of(details)
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        rule = f"expected a {'source' if 'source' in path[-2:] else 'mapping'}"
    return path, f"{rule}, found {shown(found)}. {remedy}"


@cache
def _schema(root: type[Section]) -> dict[str, Any]:
    return root.model_json_schema()


def _placed(root: type[Section], location: Key) -> tuple[Key, dict[str, Any], list[str]]:
    """The keys in pydantic's ``location``, what the JSON schema says of the last, and the keys known beside it.

    pydantic puts names of types between the keys where several are allowed; they are left out.
    """
    path: Key = ()
    known: list[str] = []
    about = _schema(root)
    for part in location:
        options = list(options_in(about, _schema(root).get("$defs", {})))
        keys = {key: value for option in options for key, value in option.get("properties", {}).items()}
        items = next((option["items"] for option in options if "items" in option), None)
        free = next((option.get("additionalProperties") for option in options if option.get("type") == "object"), None)
        if re.fullmatch(r"\[\w+\]", str(part)):
            continue
        if part in tags_in(about):
            about = {**about, "$ref": tags_in(about)[str(part)]}
        elif part in keys:
            path, known, about = (*path, part), list(keys), keys[part]
        elif isinstance(part, int) and items is not None:
            path, about = (*path, part), {**_texts(about), **items}
        elif free is not None:
            path, known, about = (*path, part), list(keys), free if isinstance(free, dict) else {}
    return path, about, known


def _texts(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key in ("description", "examples") if key in about}


def options_in(about: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schemas of which one must hold."""
    if "$ref" in about:
        about = definitions[about["$ref"].rpartition("/")[2]]
    inner = about.get("anyOf") or about.get("oneOf")
    for option in inner or ():
        yield from options_in(option, definitions)
    if not inner:
        named = about.get("patternProperties")  # keys of a pattern
        yield {**about, "additionalProperties": next(iter(named.values()))} if named else about


def tags_in(about: Mapping[str, Any]) -> Mapping[str, str]:
    """Type -> schema, where ``type`` tells schemas apart."""
    if "discriminator" in about:
        return about["discriminator"]["mapping"]
    inner = (tags_in(node) for node in (*about.get("anyOf", ()), *about.get("oneOf", ())))
    return next(filter(None, inner), {})

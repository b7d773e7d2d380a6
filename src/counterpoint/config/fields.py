"""What pydantic knows of the schema, found by path: the section and the field that a key belongs to."""

import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from counterpoint.config.base import Section
from counterpoint.config.document import Key
from counterpoint.config.sources import ONE, SEVERAL, SOURCES


def sections_in(annotation: Any) -> list[type[Section]]:
    """Every section class inside ``annotation``: through unions, lists, mappings and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, Section) and get_origin(annotation) is None:
        return [annotation]
    if get_origin(annotation) is Annotated:
        return sections_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType, dict, list, tuple):
        return [section for argument in get_args(annotation) for section in sections_in(argument)]
    return []


def strip_tags(location: Key) -> Key:
    """pydantic's ``location`` without its tags: form and ``type`` after ``source``, ``[key]`` after keys."""
    found: list[str | int] = []
    names: list[str | int] = []
    for part in location:
        if part in ("[key]", ONE, SEVERAL) or (part in SOURCES and names[-1:] == ["source"]):
            continue
        found.append(part)
        names += [] if isinstance(part, int) else [part]
    return tuple(found)


def section_at(root: type[Section], location: Key) -> type[Section] | None:
    """The section that ``location`` (with pydantic's tags) leads to; None where it is no section."""
    current: list[type[Section]] = [root]
    inside_mapping = False
    for part in location:
        if inside_mapping or isinstance(part, int):
            inside_mapping = False
        elif part in (ONE, SEVERAL):
            continue
        elif part in SOURCES and len(current) > 1:
            current = [SOURCES[str(part)]]
        else:
            info = current[0].model_fields.get(str(part)) if current else None
            current = sections_in(info.annotation) if info else []
            inside_mapping = info is not None and get_origin(info.annotation) is dict
    return current[0] if len(current) == 1 else None


def field_at(root: type[Section], location: Key) -> FieldInfo | None:
    """The field that ``location`` names; None for keys of free mappings and for unknown keys."""
    while location and (isinstance(location[-1], int) or location[-1] in (ONE, SEVERAL)):
        location = location[:-1]
    section = section_at(root, location[:-1]) if location else None
    return section.model_fields.get(str(location[-1])) if section else None

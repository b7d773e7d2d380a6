"""What pydantic knows of the schema, found by path: the section and the field that a key belongs to."""

import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from counterpoint.config.base import Section
from counterpoint.config.document import Key
from counterpoint.config.sources import SOURCES


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
    """pydantic's ``location`` without the ``type`` it puts after ``source`` and the ``[key]`` after keys."""
    return tuple(
        part
        for index, part in enumerate(location)
        if part != "[key]" and not (part in SOURCES and index > 0 and location[index - 1] == "source")
    )


def section_at(root: type[Section], location: Key) -> type[Section] | None:
    """The section that ``location`` (with pydantic's tags) leads to; None where it is no section."""
    current: list[type[Section]] = [root]
    inside_mapping = False
    for part in location:
        if inside_mapping or isinstance(part, int):
            inside_mapping = False
        elif part in SOURCES and len(current) > 1:
            current = [SOURCES[str(part)]]
        else:
            info = current[0].model_fields.get(str(part)) if current else None
            current = sections_in(info.annotation) if info else []
            inside_mapping = info is not None and get_origin(info.annotation) is dict
    return current[0] if len(current) == 1 else None


def field_at(root: type[Section], location: Key) -> FieldInfo | None:
    """The field that ``location`` names; None for keys of free mappings and for unknown keys."""
    names = [part for part in location if not isinstance(part, int)]
    while location and isinstance(location[-1], int):
        location = location[:-1]
    section = section_at(root, location[:-1]) if names else None
    return section.model_fields.get(str(location[-1])) if section else None

"""The documentation of the JSON is that of the code, and names every field."""

import re
from pathlib import Path

import counterpoint
from json_reference import PAGE, SCHEMAS, page

ESTIMATE = {"value", "low", "high"}


def test_the_page_is_written_from_the_code():
    assert PAGE.read_text() == page(), "write it again: python tests/json_reference.py"


def test_every_field_is_named():
    import dataclasses

    from json_reference import reachable

    named = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    for root, _ in SCHEMAS.values():
        for kind in reachable(root):
            assert {field.name for field in dataclasses.fields(kind)} <= named
    assert named >= ESTIMATE


def test_the_same_result_has_one_schema_wherever_it_is_written():
    source = "".join(path.read_text() for path in Path(counterpoint.__file__).parent.glob("*/diagnose/*.py"))
    source += "".join(path.read_text() for path in Path(counterpoint.__file__).parent.glob("diagnosis/**/*.py"))
    kinds = set(re.findall(r'write_result\([^"\n]+, "([\w-]+)", ', source))
    kinds |= set(re.findall(r'Part\(\s*(?:f?"[^"]+"|name),\s*"([\w-]+)",', source))
    assert kinds == set(SCHEMAS)

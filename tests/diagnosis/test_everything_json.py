"""The documentation of the JSON is that of the code, and names every field."""

import re

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

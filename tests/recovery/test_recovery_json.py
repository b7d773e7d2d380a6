"""The documentation of recovery's JSON is that of the code."""

from recovery_json_reference import PAGE, page


def test_the_page_is_written_from_the_code():
    assert PAGE.read_text() == page(), "write it again: python tests/recovery_json_reference.py"

"""Templates reach into rows and into nothing else."""

import pytest

from counterpoint.domains.prompts import Column, Template
from counterpoint.errors import DomainError

ROW = {
    "a": "x",
    "n": 3,
    "deep": {"list": [{"text": "first"}, "second"]},
    "dot.ted": "exact",
    "null": None,
    "__class__": "k",
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{a} and {n}", "x and 3"),
        ("{deep.list[0].text}/{deep.list[1]}/{deep.list[-1]}", "first/second/second"),
        ("{{a}} {a}}}", "{a} x}"),
        ("{dot.ted}", "exact"),
        ("{ a }", "x"),
        ("no columns", "no columns"),
        ("{deep}", '{"list": [{"text": "first"}, "second"]}'),
        ("{__class__}", "k"),
    ],
)
def test_rendering(template, text):
    assert Template.parse(template).render(ROW) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{", "a single '{' at character 1. Write it twice for a brace."),
        ("a } b", "a single '}' at character 3."),
        ("{a", "a single '{' at character 1."),
        ("{}", "{} is no column."),
        ("{a..b}", "{a..b} is no column."),
        ("{a[0}", "{a[0} is no column."),
    ],
)
def test_malformed_templates(template, message):
    with pytest.raises(DomainError) as caught:
        Template.parse(template)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("b", "no 'b'; the columns are: a, n, deep, dot.ted, null, __class__."),
        ("deep.lst", "no 'lst' in 'deep'; the keys are: list."),
        ("deep.list[2]", "'deep.list' has 2 items, so there is no [2]."),
        ("a.upper", "'a' is 'x', so it has no 'upper'."),
        ("a.__class__.__mro__", "'a' is 'x', so it has no '__class__'."),
        ("n.real", "'n' is 3, so it has no 'real'."),
        ("null", "'null' is null."),
        ("a!r", "no 'a!r'; the columns are"),
        ("a:>99", "no 'a:>99'; the columns are"),
    ],
)
def test_what_is_not_there(path, message):
    with pytest.raises(DomainError) as caught:
        Template.parse("{" + path + "}").render(ROW)
    assert message in str(caught.value)


def test_paths_keep_the_type():
    assert Column("deep.list").get(ROW) == [{"text": "first"}, "second"]
    assert Column("null").get(ROW) is None

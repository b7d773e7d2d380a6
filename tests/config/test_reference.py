"""The reference, the names and the shipped files agree with the code."""

import inspect
from pathlib import Path

import pytest

from counterpoint.config import load_config
from counterpoint.config.names import GROUPINGS, MAX_PROTECTED, NAMED_STRATEGIES, OPTIONS, PROTECTING, WEIGHTINGS
from counterpoint.config.reference import reference

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(p for p in (ROOT / "examples").glob("*.yaml") if "-study" not in p.name)  # tests/study has those


def test_the_committed_reference_is_current():
    committed = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert committed == reference(), "run: python -m counterpoint.config.reference > docs/configuration.md"


def test_names_equal_the_registries_of_surgery():
    from counterpoint import surgery

    assert set(GROUPINGS) == set(surgery.GROUPINGS)
    assert set(WEIGHTINGS) == set(surgery.WEIGHTINGS)
    assert {s.name: (s.grouping, s.weighting) for s in surgery.STRATEGIES.values()} == NAMED_STRATEGIES


def test_options_equal_those_of_the_weightings():
    from counterpoint.surgery import WEIGHTINGS as FOUND
    from counterpoint.surgery.weightings.protect import MAX_PROTECTED as LIMIT

    classes = {name for name in OPTIONS if inspect.isclass(FOUND[name])}
    signatures = {name: tuple(inspect.signature(FOUND[name]).parameters) for name in classes}
    protect = {name: ("protect",) if name in PROTECTING else () for name in OPTIONS}
    assert {name: (*OPTIONS[name], *protect[name]) for name in classes} == signatures
    assert not any(OPTIONS[name] or protect[name] for name in set(OPTIONS) - classes)
    assert MAX_PROTECTED == LIMIT


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_shipped_file_is_fine(path, monkeypatch):
    monkeypatch.setenv("COUNTERPOINT_DATA", "data")
    config = load_config(path)
    # a file that names its run names it after itself, so that the docs' paths are right
    assert config.run.name == path.stem or config.run.name.endswith(config.strategy.label)


def test_there_are_examples():
    names = {path.stem for path in EXAMPLES}
    assert {"pocket-mixed", "pocket-pcgrad", "pocket-mgs", "pocket-sequential", "local-files"} <= names

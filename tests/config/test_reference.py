"""The tables of the docs and the shipped files agree with the code."""

from pathlib import Path

import pytest

from counterpoint.config import load_config
from counterpoint.config.reference import PAGES, with_tables

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(p for p in (ROOT / "examples").glob("*.yaml") if "-study" not in p.name)  # tests/study has those


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_of_the_docs_are_current(name):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert page == with_tables(page, PAGES[name]()), "run: python -m counterpoint.config.reference docs"
    assert with_tables(page, "other") != page


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_shipped_file_is_fine(path, monkeypatch):
    monkeypatch.setenv("COUNTERPOINT_DATA", "data")
    config = load_config(path)
    # a file that names its run names it after itself, so that the docs' paths are right
    assert config.run.name == path.stem or config.run.name.endswith(config.strategy.label)


def test_there_are_examples():
    names = {path.stem for path in EXAMPLES}
    assert {"pocket-mixed", "pocket-pcgrad", "pocket-mgs", "pocket-sequential", "local-files"} <= names

"""The page's study file and the shipped one are studies; the page names every key and kind."""

import re
from pathlib import Path

import pytest

from counterpoint.engine.prepare import check_config
from counterpoint.study import load_study
from counterpoint.study.schema import KINDS, StudyConfig
from counterpoint.training.values import setting_findings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "study.md").read_text()
SHIPPED = sorted((ROOT / "examples").glob("*-study.yaml"))

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def test_the_pages_study_is_one(tmp_path):
    (tmp_path / "study.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    (tmp_path / "pocket-mgs.yaml").write_text((ROOT / "examples" / "pocket-mgs.yaml").read_text())
    study = load_study(tmp_path / "study.yaml", setting_findings)
    assert not [problem for config in study.configs.values() for problem in check_config(config)]
    assert {row.kind for row in study.rows.values()} == set(KINDS)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_studies_are_studies(path):
    study = load_study(path, setting_findings)
    assert not [problem for config in study.configs.values() for problem in check_config(config)]
    assert len(study.config.seeds) >= 5
    assert 1 <= len(study.config.contrasts) <= 3


def test_the_page_names_every_key():
    assert SHIPPED
    for name in (*StudyConfig.model_fields, *KINDS):
        assert re.search(rf"\b{name}\b", PAGE), name
    for kind, section in KINDS.items():
        for key in section.model_fields:
            assert f"`{key}`" in PAGE or f"{key}:" in PAGE, (kind, key)

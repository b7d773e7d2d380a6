"""Damaged run folders are read by recover, diagnose and study with a result or a sentence, never with a traceback."""

import contextlib
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch

from counterpoint.config import parse_config
from counterpoint.diagnosis import Damage, DamageOptions, diagnose
from counterpoint.diagnosis._damage_parts import ModulePart
from counterpoint.diagnosis._findings import PartFindings
from counterpoint.diagnosis._workshop import CompletionsKept, Workshop
from counterpoint.errors import CounterpointError
from counterpoint.recovery import plan_recovery, recover
from counterpoint.stats import Estimate
from counterpoint.study import StudyFolder, plan_jobs, summarize
from damaged_files import damaged_bytes, damaged_json, damaged_lines
from gram_files import write_grams
from planted_diagnosis import write_diagnosis
from planted_recovery import write_recovery
from planted_runs import STEPS, write_run
from study.studies import plant_run, study_of

pytestmark = pytest.mark.slow

PLANTED = {"math": (0.2, 0.9, 0.2), "code": (0.4, 0.4, 0.9)}
CONFIG = {
    "strategy": {"name": "sequential", "order": list(PLANTED), "steps": STEPS},
    "domains": {name: {"source": "pocket"} for name in PLANTED},
}
ESTIMATE = Estimate(0.1, 0.0, 0.2)
TERMS = dict.fromkeys(("first", "second", "predicted", "fisher", "measured", "difference"), ESTIMATE)
DAMAGE = Damage(
    *("before", "after", "math", "code", DamageOptions()),
    **TERMS,
    modules=(ModulePart("mlp", ESTIMATE, ESTIMATE, 0.1, 0.1),),
)


def no_work(*args, **kwargs):
    raise CounterpointError("Nothing is measured here.")


def sampled(workshop, point):
    workshop.rollouts_file(point).write_text("")
    return CompletionsKept(workshop.rollouts_file(point).name)


MEASURED = {
    "sample": sampled,
    "edits": lambda *args: PartFindings(),
    "routes": lambda *args: PartFindings(),
    "conflicts": no_work,
    "damage": lambda *args: DAMAGE,
}
"""What the analyses find, without any."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run that lost a domain, with a diagnosis and a recovery in it."""
    path = write_run(tmp_path_factory.mktemp("whole") / "run", PLANTED, prompts=12)
    (path / "config.yaml").write_text(parse_config(CONFIG).to_yaml())
    (path / "environment.json").write_text("{}")
    for step in (STEPS, 2 * STEPS):
        folder = path / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    gram = torch.rand(20, 2, 2, 2)
    write_grams(path / "grams.jsonl", gram, ["layers.0.mlp", "norm"], ["code", "math"], strategy_groups=["all"])
    write_diagnosis(path, list(PLANTED), ["layers.0.mlp"])
    write_recovery(path, list(PLANTED))
    with pytest.MonkeyPatch.context() as patch:
        for name, measured in MEASURED.items():
            patch.setattr(Workshop, name, measured)
        for name in ("edit", "route", "conflict"):
            patch.setattr(f"counterpoint.diagnosis.whole_run.{name}_findings", lambda found: found)
        diagnose(path)
    return path


def damage(folder, stream):
    """Changes one or two files of ``folder``, its configuration aside; some are lost."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".yaml")
    for path in stream.choices(paths, k=stream.choice([1, 1, 1, 2])):
        if not path.is_file() or stream.random() < 0.05:
            path.unlink(missing_ok=True)
            continue
        data = path.read_bytes()
        ways = [damaged_bytes]
        ways += [damaged_lines] * 3 if path.suffix == ".jsonl" else [damaged_json] * 3 if path.suffix == ".json" else []
        try:
            path.write_bytes(stream.choice(ways)(data, stream))
        except (ValueError, IndexError, RecursionError):  # damaged twice
            path.write_bytes(b"")


def recovered(path):
    plan_recovery(path)
    with contextlib.suppress(CounterpointError):  # the attempts themselves
        recover(path)


def outcomes(whole, folder, read, cases):
    """How often reading a damaged copy gave a result, and how often a sentence."""
    counts = {"result": 0, "sentence": 0}
    for case in range(cases):
        stream = random.Random(case)
        copy = Path(shutil.copytree(whole, folder / "copy"))
        damage(copy, stream)
        try:
            read(copy)
            counts["result"] += 1
        except CounterpointError:
            counts["sentence"] += 1
        except Exception as error:
            raise AssertionError(f"case {case}") from error
        shutil.rmtree(copy)
    return counts


def test_a_whole_run_is_read(whole, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    assert plan_recovery(copy).fallen
    with pytest.MonkeyPatch.context() as patch:
        for name in MEASURED:
            patch.setattr(Workshop, name, no_work)
        parts = diagnose(copy).parts
    assert {part.name: part.status for part in parts} == {
        "behaviour": "kept",
        "edits": "kept",
        f"rollouts-step-{STEPS}": "kept",
        f"routes-step-{STEPS}": "kept",
        f"conflicts-step-{STEPS}": "failed",
        "damage-math-code": "kept",
    }


def test_recover_reads_damaged_runs(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["counterpoint.recovery.recover"], "rollback", no_work)
    monkeypatch.setattr(sys.modules["counterpoint.recovery.recover"], "refresh", no_work)
    counts = outcomes(whole, tmp_path, recovered, 250)
    assert min(counts.values()) > 15, counts


def test_diagnose_reads_damaged_runs(whole, tmp_path, monkeypatch):
    for name in MEASURED:
        monkeypatch.setattr(Workshop, name, no_work)
    counts = outcomes(whole, tmp_path, diagnose, 250)
    assert min(counts.values()) > 15, counts


def test_a_study_reads_damaged_runs(tmp_path):
    rows = {"base": "base", "mixed": {"strategy": "mixed"}, "sequential": {"strategy": "sequential"}}
    study = study_of(tmp_path, rows, seeds=2)
    folder = StudyFolder(tmp_path / "studies" / "tiny")
    for job in plan_jobs(study, folder.runs):
        if job.trains:
            plant_run(folder, job, {"math": 0.5, "code": 0.4})

    def read(copy):
        summarize(study, StudyFolder(copy))

    read(folder.path)
    counts = outcomes(folder.path, tmp_path, read, 200)
    assert min(counts.values()) > 15, counts

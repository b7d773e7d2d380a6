"""A run diagnosed from end to end: every part is there, done once, and a part that fails leaves the others."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from counterpoint.config import parse_config
from counterpoint.diagnosis import DiagnoseOptions, diagnose
from counterpoint.diagnosis.whole_run.facts import damage_facts, damage_of, edits_of
from counterpoint.diagnosis.whole_run.parts import Part, file_digest, fingerprint, run_part
from counterpoint.errors import CounterpointError, RunError
from counterpoint.pocket import model_path
from counterpoint.runs.records import AnyObject, read_json, write_checked
from planted_runs import STEPS, write_run

PLANTED = {"code": (0.2, 0.8, 0.4), "math": (0.4, 0.4, 0.9)}
FEW = DiagnoseOptions(prompts=24, samples=8, effort="quick")


@dataclass(frozen=True)
class Found:
    number: float


@dataclass(frozen=True)
class Stopped:
    stopped: str | None


def part(work, **inputs):
    return Part("one", "found", inputs, work, {"step": 3})


def test_a_part_is_done_once_for_the_same_inputs(tmp_path):
    calls = []

    def work():
        calls.append(1)
        return Found(0.5)

    assert [run_part(tmp_path, part(work, a=1)).status for _ in range(2)] == ["done", "kept"]
    written = json.loads((tmp_path / "one.json").read_text())
    assert list(written)[:3] == ["schema", "version", "inputs"]
    assert (written["schema"], written["number"]) == ("counterpoint.diagnosis.found", 0.5)
    assert run_part(tmp_path, part(work, a=2)).status == "done"
    (tmp_path / "one.json").write_text('{"torn')
    assert run_part(tmp_path, part(work, a=2)).status == "done"
    assert len(calls) == 3


def test_a_result_that_stopped_early_is_measured_again(tmp_path):
    stopped = [run_part(tmp_path, part(lambda: Stopped("Memory did not suffice."), a=1)).status for _ in range(2)]
    assert stopped == ["done", "done"]
    assert [run_part(tmp_path, part(lambda: Stopped(None), a=2)).status for _ in range(2)] == ["done", "kept"]


@pytest.mark.parametrize(
    "error",
    [CounterpointError("8 prompts are needed."), MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory")],
)
def test_a_part_that_fails_says_why_and_leaves_no_old_result(tmp_path, error):
    run_part(tmp_path, part(lambda: Found(0.5), a=1))

    def work():
        raise error

    done = run_part(tmp_path, part(work, a=2))
    assert done.status == "failed"
    assert done.reason in ("8 prompts are needed.", "Out of memory. Lower --prompts.")
    assert not list(tmp_path.iterdir())


def test_our_own_mistakes_are_not_hidden(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_part(tmp_path, part(lambda: 1 / 0))

    def wrong():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        run_part(tmp_path, part(wrong))


def test_fingerprints_tell_checkpoints_apart(tmp_path):
    folders = []
    for i in range(3):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        torch.manual_seed(min(i, 1))
        (folder / "model.safetensors").write_bytes(torch.randn(50_000).numpy().tobytes())
        folders.append(folder)
    marks = [fingerprint(folder) for folder in folders]
    assert marks[0] != marks[1]
    assert marks[1] == marks[2]


def estimate(value, half=0.01):
    return {"value": value, "low": value - half, "high": value + half}


def damage_json(**fields):
    rows = [("layers.0.mlp", 0.06, 0.2), ("layers.1.mlp", 0.02, 0.7), ("norm", -0.03, 0.1)]
    modules = [{"module": name, "second": estimate(value), "edit_share": share} for name, value, share in rows]
    numbers = {key: estimate(0.05) for key in ("measured", "first", "second", "fisher")}
    return {"stopped": None, "modules": modules, **numbers} | fields


def test_the_module_of_the_damage_is_its_share_of_all_harm():
    facts = damage_facts(damage_of(damage_json()))
    assert (facts.top_group, facts.edit_share) == ("layers.0.mlp", 0.2)
    assert facts.top_share == pytest.approx(0.75)


def test_no_module_is_named_where_none_is_sure():
    rows = [{"module": "norm", "second": estimate(0.06, 0.1), "edit_share": 1.0}]
    assert damage_facts(damage_of(damage_json(modules=rows))).top_group is None


def test_a_measurement_that_stopped_says_why():
    assert damage_of(damage_json(second=None, stopped="Memory did not suffice.")) == "Memory did not suffice."


def write_checkpoints(path, domains):
    """The run's configuration, and checkpoints that are the pocket model with a little noise, more every stage."""
    config = parse_config(
        {
            "model": "pocket",
            "strategy": {"name": "sequential", "order": domains, "steps": STEPS},
            "domains": {name: {"source": "pocket"} for name in domains},
            "training": {"max_completion_length": 12},
            "evaluation": {"prompts": 16, "samples": 1},
        }
    )
    (path / "config.yaml").write_text(config.to_yaml())
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_path())
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    for step in (STEPS, 2 * STEPS):
        with torch.no_grad():
            for param in model.parameters():
                param += 0.03 * param.std().nan_to_num() * torch.randn(param.shape, generator=generator)
        model.save_pretrained(path / "checkpoints" / f"step-{step}")
        tokenizer.save_pretrained(path / "checkpoints" / f"step-{step}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = write_run(tmp_path_factory.mktemp("diagnosed") / "run", PLANTED)
    write_checkpoints(path, list(PLANTED))
    return path


@pytest.fixture(scope="module")
def summary(run):
    return diagnose(run, FEW)


def test_every_part_is_there(run, summary):
    assert [(part.name, part.status) for part in summary.parts] == [
        ("behaviour", "done"), ("edits", "done"), ("rollouts-step-10", "done"), ("routes-step-10", "done"),
        ("conflicts-step-10", "done"), ("damage-code-math", "done"),
    ]  # fmt: skip
    for name in ("behaviour", "edits", "routes-step-10", "conflicts-step-10", "damage-code-math", "summary"):
        written = json.loads((run / "diagnosis" / f"{name}.json").read_text())
        assert written["schema"] == f"counterpoint.diagnosis.{name.split('-')[0]}"
    lines = (run / "diagnosis" / "rollouts-step-10.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 12 * 4


def test_the_pair_is_told_from_all_of_them(summary):
    (pair,) = summary.pairs
    assert (pair.earlier, pair.later, pair.verdict) == ("code", "math", "fell")
    assert pair.change.high < 0
    assert pair.outcome.startswith("code fell by ")
    for found in (pair.damage, pair.conflict, pair.edits, pair.routes):
        assert found is not None
    assert "cannot be told" not in pair.outcome + pair.mechanism
    # Noise of one size everywhere: neither stage prefers the neurons of the other.
    assert pair.edits.p_value > 0.001
    assert len(summary.edits) == 2
    assert len(pair.conflict.modules) == len(summary.edits[0].modules)


def test_a_second_time_nothing_is_measured_again(run, summary):
    again = diagnose(run, FEW)
    assert {part.status for part in again.parts} == {"kept"}
    assert again.pairs == summary.pairs
    (run / "diagnosis" / "rollouts-step-10.jsonl").unlink()
    found = {part.name: part.status for part in diagnose(run, FEW).parts}
    assert found.pop("rollouts-step-10") == "done"
    assert set(found.values()) == {"kept"}


def test_a_part_that_cannot_be_measured_leaves_the_others(run, summary):
    # one right answer in no domain: without a signal neither gradients nor damage can be measured
    file = run / "diagnosis" / "rollouts-step-10.jsonl"
    whole = file.read_text()
    lines = [json.loads(line) | {"reward": 0.0, "advantage": 0.0} for line in whole.splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    known = run / "diagnosis" / "rollouts-step-10.json"
    sampled = read_json(known, AnyObject, "")
    write_checked(known, sampled | {"beside": {file.name: file_digest(file)}})
    for name in ("conflicts-step-10", "damage-code-math"):
        (run / "diagnosis" / f"{name}.json").unlink()
    found = diagnose(run, FEW)
    failed = {part.name: part.reason for part in found.parts if part.status == "failed"}
    assert set(failed) == {"conflicts-step-10", "damage-code-math"}
    (pair,) = found.pairs
    assert "the damage done by the edit of math cannot be told: " in pair.outcome
    assert "routes that both use overlap" in pair.mechanism
    assert pair.routes == summary.pairs[0].routes
    file.write_text(whole)
    write_checked(known, sampled)


def test_what_cannot_be_diagnosed_is_refused_before_long_work(tmp_path):
    path = write_run(tmp_path / "run", PLANTED)
    with pytest.raises(CounterpointError, match="--prompts must be at least 8"):
        diagnose(path, DiagnoseOptions(prompts=4))
    with pytest.raises(RunError, match="there is no run here"):
        diagnose(Path(tmp_path / "nowhere"))
    write_checkpoints(path, list(PLANTED))
    for folder in (path / "checkpoints").iterdir():
        (folder / "config.json").unlink()
    with pytest.raises(RunError, match="no checkpoint at the end of a stage"):
        diagnose(path)


def test_a_stage_that_changed_no_neuron_shares_none():
    row = {"first": "a", "second": "b", "overlap": {"first": 0, "second": 9, "jaccard": 0.0}}
    result = {"checkpoints": [{"name": "a"}, {"name": "b"}], "pairs": [row], "top_share": 0.1}
    assert edits_of(result, 0, 1) == "one of the two changed no MLP neuron."

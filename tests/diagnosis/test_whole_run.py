"""A run diagnosed from end to end: every part is there, done once, and a part that fails leaves the others."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from counterpoint.config import parse_config
from counterpoint.diagnosis import Behaviour, DiagnoseOptions, diagnose, diagnose_checkpoints
from counterpoint.diagnosis._parts import Fingerprints, Part, run_part
from counterpoint.disk import file_digest
from counterpoint.errors import ConfigError, CounterpointError, ModelError, RunError
from counterpoint.pocket import model_path
from counterpoint.results import of_plain
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


def part(work, read=Found, **inputs):
    return Part("one", "found", inputs, work, read, {"step": 3})


def status(*arguments, **options):
    return run_part(*arguments, **options)[0].status


def test_a_part_is_done_once_for_the_same_inputs(tmp_path):
    calls = []

    def work():
        calls.append(1)
        return Found(0.5)

    assert [status(tmp_path, part(work, a=1)) for _ in range(2)] == ["done", "kept"]
    written = json.loads((tmp_path / "one.json").read_text())
    assert list(written)[:3] == ["schema", "version", "inputs"]
    assert (written["schema"], written["number"]) == ("counterpoint.found", 0.5)
    assert status(tmp_path, part(work, a=2)) == "done"
    (tmp_path / "one.json").write_text('{"torn')
    assert status(tmp_path, part(work, a=2)) == "done"
    assert len(calls) == 3


def test_a_result_that_stopped_early_is_measured_again(tmp_path):
    stopped = [status(tmp_path, part(lambda: Stopped("Memory ended."), Stopped, a=1)) for _ in range(2)]
    assert stopped == ["done", "done"]
    assert [status(tmp_path, part(lambda: Stopped(None), Stopped, a=2)) for _ in range(2)] == ["done", "kept"]


def test_a_kept_part_gives_what_was_found_as_it_was(tmp_path):
    found = [run_part(tmp_path, part(lambda: Found(0.1 + 0.2), a=1))[1] for _ in range(2)]
    assert found == [Found(0.1 + 0.2)] * 2


def test_what_is_not_wanted_is_left_out_unless_it_is_there(tmp_path):
    assert status(tmp_path, part(lambda: Found(0.5), a=1), wanted=False) == "left out"
    run_part(tmp_path, part(lambda: Found(0.5), a=1))
    assert status(tmp_path, part(lambda: Found(0.5), a=1), wanted=False) == "kept"


@pytest.mark.parametrize(
    "error",
    [CounterpointError("8 prompts are needed."), MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory")],
)
def test_a_part_that_fails_says_why_and_leaves_no_old_result(tmp_path, error):
    run_part(tmp_path, part(lambda: Found(0.5), a=1))

    def work():
        raise error

    done, found = run_part(tmp_path, part(work, a=2))
    assert (done.status, found) == ("failed", None)
    assert done.reason in ("8 prompts are needed.", "Out of memory. Use fewer prompts.")
    assert not list(tmp_path.iterdir())


def test_our_own_mistakes_are_not_hidden(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_part(tmp_path, part(lambda: 1 / 0))

    def wrong():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        run_part(tmp_path, part(wrong))


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.manual_seed(0)
    (folder / "model.safetensors").write_bytes(torch.randn(2_000_000).numpy().tobytes())
    return folder


def test_one_changed_weight_is_noticed(checkpoint, tmp_path):
    before = Fingerprints(tmp_path).of(checkpoint)
    assert Fingerprints(tmp_path).of(checkpoint) == before
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.seek(4 * 777_777)
        file.write(b"\x01\x02\x03\x04")
    assert Fingerprints(tmp_path).of(checkpoint) != before


def test_an_older_checkpoint_put_in_its_place_is_noticed(checkpoint, tmp_path):
    """A rolled-back one, of the same size, with a time of change that is older, or that was put back by hand."""
    prints, file = Fingerprints(tmp_path), checkpoint / "model.safetensors"
    before, state = prints.of(checkpoint), file.stat()
    torch.manual_seed(1)
    other = tmp_path / "other"
    other.write_bytes(torch.randn(2_000_000).numpy().tobytes())
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns - 10**12))
    other.replace(file)
    older = Fingerprints(tmp_path).of(checkpoint)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert older == Fingerprints(tmp_path).of(checkpoint) != before


def test_an_unchanged_checkpoint_is_read_once(checkpoint, tmp_path, monkeypatch):
    before = Fingerprints(tmp_path).of(checkpoint)
    monkeypatch.setattr("counterpoint.diagnosis._parts.file_digest", None)
    assert Fingerprints(tmp_path).of(checkpoint) == before
    (tmp_path / "hashes.json").write_text('{"torn')
    with pytest.raises(TypeError):
        Fingerprints(tmp_path).of(checkpoint)


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
        assert written["schema"] == f"counterpoint.{name.split('-')[0]}"
    lines = (run / "diagnosis" / "rollouts-step-10.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 12 * 4


def test_the_pair_is_put_together_from_all_of_them(summary):
    (pair,) = summary.pairs
    assert (pair.earlier, pair.later, pair.change.verdict, pair.missing) == ("code", "math", "fell", {})
    assert pair.change.change.high < 0
    assert pair.sentence.startswith("code lost ")
    for found in (pair.damage, pair.conflict, pair.edits, pair.routes):
        assert found is not None
    # Noise of one size everywhere: neither stage prefers the neurons of the other.
    assert pair.edits.p_value > 0.001
    assert len(summary.stages) == 2
    assert len(pair.conflict.modules) == len(summary.stages[0].modules)
    assert "counterpoint recover" in " ".join(summary.sentences())


def test_a_second_time_nothing_is_measured_again(run, summary):
    again = diagnose(run, FEW)
    assert {part.status for part in again.parts} == {"kept"}
    assert again.pairs == summary.pairs
    some = diagnose(run, replace(FEW, prompts=32), only=["edits"])
    assert {part.name: part.status for part in some.parts if part.kind in ("routes", "damage")} == {
        "routes-step-10": "left out",
        "damage-code-math": "left out",
    }
    assert some.pairs[0].damage is None
    assert not some.failed
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
    assert pair.damage is None
    assert pair.missing["damage"] == failed["damage-code-math"]
    assert "need 4 prompts per domain whose completions differ in reward; code has 0, math has 0." in str(found)
    assert pair.routes == summary.pairs[0].routes
    file.write_text(whole)
    write_checked(known, sampled)


def test_what_cannot_be_diagnosed_is_refused_before_long_work(tmp_path):
    path = write_run(tmp_path / "run", PLANTED)
    write_checkpoints(path, list(PLANTED))
    with pytest.raises(CounterpointError, match="prompts must be at least 8"):
        diagnose(path, DiagnoseOptions(prompts=4))
    with pytest.raises(CounterpointError, match="only='edit': there is no such analysis; did you mean 'edits'"):
        diagnose(path, only=["edit"])
    with pytest.raises(RunError, match="there is no run here"):
        diagnose(Path(tmp_path / "nowhere"))
    for folder in (path / "checkpoints").iterdir():
        (folder / "config.json").unlink()
    with pytest.raises(RunError, match=r"no checkpoint at the end of a stage.*--only behaviour"):
        diagnose(path)
    assert diagnose(path, only=["behaviour"]).verdicts


@pytest.fixture(scope="module")
def checkpoints(run, tmp_path_factory):
    """A configuration that no batch fits, as nothing is trained, and given checkpoints."""
    folder = tmp_path_factory.mktemp("given")
    text = (run / "config.yaml").read_text()
    (folder / "mine.yaml").write_text(
        text.replace("\n  max_completion_length", "\n  per_device_train_batch_size: 7\n  max_completion_length")
    )
    steps = [run / "checkpoints" / f"step-{STEPS * i}" for i in (1, 2)]
    found = diagnose_checkpoints(
        folder / "mine.yaml", base="pocket", before=steps[0], after=steps[1], domain="code", other="math", options=FEW,
        out=folder / "out",
    )  # fmt: skip
    return folder, steps, found


def test_given_checkpoints_are_diagnosed_as_a_run_is(checkpoints, summary):
    folder, steps, found = checkpoints
    assert [part.name for part in found.parts] == [
        "scores-base", "scores-before", "scores-after", "edits", "rollouts-before", "routes-before",
        "conflicts-before", "damage-code-math", "behaviour",
    ]  # fmt: skip
    assert {part.status for part in found.parts} == {"done"}
    (pair,), (known,) = found.pairs, summary.pairs
    assert (pair.damage, pair.edits, pair.routes) == (known.damage, known.edits, known.routes)
    assert [change.stage for change in found.changes] == ["code", "code", "math", "math"]
    assert {score.moment for score in behaviour_of(folder).scores} == {"base", "before", "after"}
    again = diagnose_checkpoints(
        folder / "mine.yaml", base="pocket", before=steps[0], after=steps[1], domain="code", other="math", options=FEW,
        out=folder / "out",
    )  # fmt: skip
    assert {part.status for part in again.parts} == {"kept"}
    assert again.pairs == found.pairs


def behaviour_of(folder):
    written = json.loads((folder / "out" / "diagnosis" / "behaviour.json").read_text())
    return of_plain(Behaviour, written)


def test_two_checkpoints_are_one_edit_and_its_damage(checkpoints, tmp_path):
    folder, steps, _ = checkpoints
    found = diagnose_checkpoints(
        folder / "mine.yaml", base=steps[0], after=steps[1], domain="code", options=FEW, out=tmp_path / "out",
        only=["edits", "damage"],
    )  # fmt: skip
    (pair,), (stage,) = found.pairs, found.stages
    assert (pair.earlier, pair.later) == ("code", "later training")
    assert stage.modules is not None
    assert pair.damage is not None
    assert "not measured" in pair.sentence, "scores were left out"
    assert "left out" in pair.missing["score"]


def test_checkpoints_that_cannot_be_compared_are_refused_at_once(checkpoints, tmp_path):
    folder, steps, _ = checkpoints
    given = {"after": steps[1], "domain": "code", "out": tmp_path / "out"}
    with pytest.raises(CounterpointError, match=r"nothing to compare it with\. Give before, base, or both"):
        diagnose_checkpoints(folder / "mine.yaml", **given)
    with pytest.raises(ConfigError, match="no domain 'maths'; did you mean 'math'"):
        diagnose_checkpoints(folder / "mine.yaml", **given, before=steps[0], other="maths")
    with pytest.raises(ModelError, match="there is no such folder"):
        diagnose_checkpoints(folder / "mine.yaml", **given, before="./nowhere")
    assert not (tmp_path / "out").exists()

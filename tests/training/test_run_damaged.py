"""A run whose files were damaged goes on with the numbers of an undisturbed one, or says why it cannot."""

import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from counterpoint.config import parse_config
from counterpoint.engine import resume, train
from counterpoint.errors import CounterpointError, ModelError, RunError
from counterpoint.runs import Reporter, RunDirectory
from counterpoint.runs.resuming import resume_point
from damaged_files import damaged_bytes, damaged_json, damaged_lines
from same_run import lines

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

STEPS, EVERY = 5, 2

LINES = ("metrics.jsonl", "evals.jsonl", "samples.jsonl", "grams.jsonl")


class Killed(BaseException):
    """Ends a run as a kill does: nothing is written afterwards."""


class Speaker(Reporter):
    """Keeps what it hears, and kills the run once ``step`` was logged."""

    def __init__(self, step=None):
        self.step, self.heard = step, []

    def message(self, text):
        self.heard.append(text)

    def training(self, step, total, metrics):
        if step == self.step:
            raise Killed


def config(model, folder, keep=2, **overrides):
    settings = {
        "model": str(model),
        "strategy": "mgs",
        "domains": {"math": {"source": "pocket"}, "code": {"source": "pocket"}},
        "training": {
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "num_generations": 4,
            "max_completion_length": 4,
            "learning_rate": 1e-3,
            "gradient_checkpointing": False,
        },
        "evaluation": {"prompts": 2, "samples": 1, "every": 2, "greedy": False},
        "run": {"dir": str(folder), "name": "run", "save_every": EVERY, "keep": keep, "samples": 1, "device": "cpu"},
    }
    return parse_config(settings | overrides)


def killed_and_whole(model, folder, at=STEPS, **overrides):
    """The same run twice, one of them killed after the second checkpoint."""
    train(config(model, folder / "whole", **overrides), "run")
    finish = RunDirectory.finish
    RunDirectory.finish = lambda run, status: None
    try:
        with pytest.raises(Killed):
            train(config(model, folder / "killed", **overrides), "run", Speaker(at))
    finally:
        RunDirectory.finish = finish
    return folder / "killed" / "run", folder / "whole" / "run"


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory):
    return killed_and_whole(tiny_model, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def killed(runs, tmp_path):
    return shutil.copytree(runs[0], tmp_path / "run")


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_identical(ours, theirs):
    for name in LINES:
        assert lines(ours, name) == lines(theirs, name), name
    (last, _) = max(RunDirectory(theirs).checkpoints())
    last = f"checkpoints/step-{last}"
    for name in ("model.safetensors", "counterpoint_state.json", "scheduler.pt"):
        assert (ours / last / name).read_bytes() == (theirs / last / name).read_bytes(), name
    states = [torch.load(folder / last / "optimizer.pt", weights_only=True)["state"] for folder in (ours, theirs)]
    for i, state in states[0].items():
        assert all(torch.equal(state[key], states[1][i][key]) for key in state)
    assert names(ours) == names(theirs)
    for key in ("strategy", "domains", "status", "steps", "stages", "rows"):
        assert RunDirectory(ours).state[key] == RunDirectory(theirs).state[key], key


def files_of(folder):
    """The run's files and those of its newest checkpoint."""
    own = [path.name for path in folder.iterdir() if path.is_file() and path.name != ".lock"]
    newest = folder / "checkpoints" / "step-4"
    return sorted(own) + sorted(str(path.relative_to(folder)) for path in newest.iterdir())


def half(data):
    return data[: len(data) // 2]


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0x55 for byte in data[middle : middle + 16]) + data[middle + 16 :]


def zeros(data):
    end = min(len(data), 4096)
    return data[:-end] + b"\0" * end


def broken_line(data):
    rows = data.split(b"\n")
    return b"\n".join([*rows[: len(rows) // 2], b'{"broken', *rows[len(rows) // 2 :]])


EVERYWHERE = {"half": half, "empty": lambda data: b"", "gone": None, "flip": flip, "zeros": zeros}
LINED = {"torn": lambda data: data + b'{"step": 9, "x', "broken line": broken_line}
TYPED = {"wrong type": lambda data: b"[1,2,3]\n"}


def damages_of(name):
    more = LINED | TYPED if name.endswith(".jsonl") else TYPED if name.endswith(".json") else {}
    return EVERYWHERE | more


def outcome(folder, whole):
    """``identical`` or ``refused``; everything else is an error."""
    try:
        resume(folder)
    except CounterpointError:
        return "refused"
    assert_identical(folder, whole)
    return "identical"


def skipped(folder):
    """The step that ``folder`` goes on from, and of how many newer checkpoints it says that they are damaged."""
    with RunDirectory.open(folder, write=False) as run:
        point = resume_point(run)
    return point.step, len(point.skipped)


@pytest.mark.slow
def test_every_damage_ends_identical_or_refused(runs, tmp_path):
    """A damaged checkpoint is skipped, whichever of its files it is; to its end goes one run of each kind of damage."""
    killed, whole = runs
    found, ways = {}, set()
    for name in files_of(killed):
        for damage, change in damages_of(name).items():
            copy = shutil.copytree(killed, tmp_path / "copy")
            if change is None:
                (copy / name).unlink()
            else:
                (copy / name).write_bytes(change((copy / name).read_bytes()))
            if name.startswith("checkpoints/") and (name.endswith("optimizer.pt") or damage in ways):
                found[name, damage] = skipped(copy)
            else:
                found[name, damage] = outcome(copy, whole)
                ways |= {damage} if name.startswith("checkpoints/") else set()
            shutil.rmtree(copy)
    assert len(found) > 100
    of_checkpoint = {key for key in found if key[0].startswith("checkpoints/")}
    assert sum(found[key] == "identical" for key in of_checkpoint) == len(ways) == len(EVERYWHERE | TYPED)
    wanted = dict.fromkeys(found, "refused")
    wanted |= {key: "identical" if found[key] == "identical" else (2, 1) for key in of_checkpoint}
    wanted |= {(name, "torn"): "identical" for name in LINES}  # cut off: it came after the checkpoint
    wanted |= {("environment.json", "gone"): "identical"}
    # Some of its bytes stand in texts that nobody reads again.
    wanted[("environment.json", "flip")] = found[("environment.json", "flip")]
    assert found == wanted


@pytest.mark.slow
def test_random_damages_end_identical_or_refused(runs, tmp_path):
    killed, whole = runs
    stream = random.Random(0)
    names, found = files_of(killed), []
    halves = [[name for name in names if name.startswith("checkpoints/") == inside] for inside in (False, True)]
    for i in range(10):
        copy = shutil.copytree(killed, tmp_path / "copy")
        for name in stream.choices(halves[i % 2], k=stream.choice([1, 1, 2])):
            path = copy / name
            ways = [damaged_bytes]
            ways += [damaged_lines] * 2 if name in LINES else [damaged_json] * 2 if path.suffix == ".json" else []
            path.write_bytes(stream.choice(ways)(path.read_bytes(), stream) if path.stat().st_size else b"\0")
        found.append(outcome(copy, whole))
        shutil.rmtree(copy)
    assert set(found) == {"identical", "refused"}


def test_a_damaged_checkpoint_is_skipped_with_a_sentence(killed, runs):
    (killed / "checkpoints" / "step-4" / "optimizer.pt").unlink()
    speaker = Speaker()
    resume(killed, speaker)
    (said,) = [text for text in speaker.heard if "skipped" in text]
    assert said == f"Checkpoint step-4 is skipped. {killed / 'checkpoints/step-4/optimizer.pt'}: is missing."
    assert_identical(killed, runs[1])


def test_where_no_checkpoint_is_whole_the_run_is_refused_and_left_alone(killed, runs):
    for step, name in ((2, "model.safetensors"), (4, "rng_state.pth")):
        path = killed / "checkpoints" / f"step-{step}" / name
        path.write_bytes(flip(path.read_bytes()))
    before = {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"none of its checkpoints is whole.*rng_state.*model.*begin from step 0"):
        resume(killed)
    assert {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()} == before
    shutil.rmtree(killed / "checkpoints")
    resume(killed)
    assert_identical(killed, runs[1])


def test_a_lost_line_names_the_way_on_and_the_way_works(killed, runs):
    path = killed / "metrics.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows[:2] + rows[3:]))
    with pytest.raises(
        RunError, match=r"metrics.jsonl: .* Or remove the checkpoints after step 2 to go on from step 2"
    ):
        resume(killed)
    shutil.rmtree(killed / "checkpoints" / "step-4")
    resume(killed)
    assert_identical(killed, runs[1])


def test_a_checkpoint_without_a_manifest_is_not_used(killed):
    (killed / "checkpoints" / "step-4" / "manifest.json").unlink()
    with RunDirectory.open(killed, write=False) as run:
        point = resume_point(run)
    assert point.step == 2
    assert "step-4: has no manifest.json, so it is not whole" in point.skipped[0]


def test_another_configuration_is_refused(killed):
    path = killed / "config.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))
    with pytest.raises(RunError, match=r"config.yaml: is not what the run was started with"):
        resume(killed)


def test_a_kill_between_an_evaluation_and_its_seal_makes_it_again(tiny_model, tmp_path, monkeypatch, runs):
    """Killed while the last evaluation is written: one domain of it is there."""
    append = RunDirectory.append_eval
    done = []

    def torn(run, line):
        if line["when"] == "after" and done:
            raise Killed
        done.extend([1] if line["when"] == "after" else [])
        append(run, line)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append_eval", torn)
        patch.setattr(RunDirectory, "finish", lambda run, status: None)
        with pytest.raises(Killed):
            train(config(tiny_model, tmp_path), "run")
    assert len(lines(tmp_path / "run", "evals.jsonl")) == len(lines(runs[1], "evals.jsonl")) - 1
    resume(tmp_path / "run")
    assert_identical(tmp_path / "run", runs[1])


@pytest.mark.slow
def test_the_checkpoint_at_which_a_stage_began_is_needed_too(tiny_model, tmp_path):
    strategy = {"name": "sequential", "order": ["code", "math"], "steps": 3}
    killed, whole = killed_and_whole(tiny_model, tmp_path, at=6, strategy=strategy, keep=None)
    path = killed / "checkpoints" / "step-3" / "model.safetensors"
    path.write_bytes(flip(path.read_bytes()))
    speaker = Speaker()
    resume(killed, speaker)
    skipped = [text.split(".")[0] for text in speaker.heard if "skipped" in text]
    assert skipped == ["Checkpoint step-5 is skipped", "Checkpoint step-3 is skipped"]
    assert_identical(killed, whole)


@pytest.mark.parametrize(("value", "before"), [(torch.nan, True), (torch.nan, False), (torch.inf, False)])
def test_weights_that_are_no_numbers_are_refused_before_anything_is_sampled(value, before, tiny_model, tmp_path):
    broken = shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    evaluation = {"prompts": 2, "samples": 1, "before": before}
    with pytest.raises(
        ModelError, match=r"1 weights are NaN or infinite, in 1 of its tensors: model.layers.1.mlp.up_proj"
    ):
        train(config(broken, tmp_path, evaluation=evaluation), "run")

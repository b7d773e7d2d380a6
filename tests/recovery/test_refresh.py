"""A refresh from end to end on the pocket model with planted damage, and what it refuses."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from counterpoint.checkpoints import open_checkpoint, write_checkpoint
from counterpoint.config import parse_config
from counterpoint.engine import Interrupted, train
from counterpoint.errors import ConfigError, CounterpointError, DomainError, ModelError, RunError
from counterpoint.evaluation.history import Evaluations
from counterpoint.recovery import RefreshOptions, _words, continue_refresh, refresh
from counterpoint.recovery.refresh import _notes, refresh_config
from counterpoint.runs import RunDirectory
from counterpoint.stats import standing

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CLOCKS = {"time", "step_time", "step_seconds", "seconds"}


def config(**overrides):
    training = {
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "num_generations": 8,
        "max_completion_length": 8,
        "learning_rate": 3e-4,
        "lr_scheduler_type": "constant",
    }
    return parse_config(
        {
            "model": "pocket",
            "strategy": "mgs",
            "domains": {name: {"source": "pocket"} for name in ("math", "code", "qa")},
            "training": training,
            "evaluation": {"prompts": 24, "samples": 2, "greedy": False, "max_new_tokens": 16},
            "run": {"device": "cpu", "samples": 1},
        }
        | overrides
    )


FEW = {"evaluation": {"prompts": 8, "samples": 1, "greedy": False, "max_new_tokens": 16}}


@pytest.fixture(scope="module")
def hurt(tmp_path_factory):
    """The pocket model with noise on its MLPs: math falls from 0.54 to 0.27 and comes back in a few steps."""
    folder = tmp_path_factory.mktemp("models") / "hurt"
    generator = torch.Generator().manual_seed(0)
    source = open_checkpoint("pocket")

    def noisy(name):
        tensor = source.tensor(name)
        if "mlp" not in name:
            return tensor
        return tensor + 2.0 * tensor.float().std() * torch.randn(tensor.shape, generator=generator)

    return write_checkpoint(folder, source, noisy)


class Stop(Exception):
    """What a test raises in the middle of a run."""


class Stopping:
    """A reporter that raises ``error`` after ``step``."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def message(self, text):
        pass

    def evaluating(self, *args):
        pass

    def evaluated(self, *args):
        pass

    def training(self, step, total, metrics):
        if step == self.step:
            raise self.error


def lines(run, name):
    rows = [json.loads(line) for line in (Path(run) / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


LIMIT = RefreshOptions(steps=4, every=2, former=0.99)
RECOVER = RefreshOptions(steps=20, every=2, learning_rate=3e-4)


@pytest.fixture(scope="module")
def recovered(hurt, tmp_path_factory):
    out = tmp_path_factory.mktemp("recovered") / "back"
    return refresh(hurt, "math", config(), before="pocket", out=out, options=RECOVER)


def test_planted_damage_is_recovered(recovered):
    assert recovered.stopped == "recovered"
    assert 0 < recovered.steps <= 20
    assert recovered.steps % 2 == 0
    assert recovered.start["math"].value < recovered.former.low
    last = recovered.evaluations[-1]
    assert (last.step, set(last.scores)) == (recovered.steps, {"math", "code", "qa"})
    assert last.scores["math"].value >= recovered.former.low
    assert recovered.changes["math"].value == pytest.approx(last.scores["math"].value - recovered.start["math"].value)
    assert recovered.standing.verdict in ("back", "improved")
    said = " ".join(recovered.sentences())
    assert said.startswith("math went from")
    assert "its former score (up to 0.03 below counts as the same)" in said
    assert recovered.to_frame()["domain"].tolist() == ["math", "code", "qa"]
    assert AutoModelForCausalLM.from_pretrained(recovered.checkpoint)


def test_the_run_is_a_run_and_the_result_is_beside_it(recovered):
    run = RunDirectory.open(recovered.run, write=False)
    (stage,) = run.state["stages"]
    assert (stage["kind"], stage["domains"], stage["last_step"]) == ("refresh", ["math"], recovered.steps)
    assert (run.state["status"], run.state["steps"]) == ("done", recovered.steps)
    assert [line["when"] for line in lines(run.path, "evals.jsonl")][-1] == "after"
    written = json.loads((run.path / "recovery" / "refresh.json").read_text())
    assert (written["schema"], written["version"]) == ("counterpoint.refresh", 2)
    assert written["stopped"] == "recovered"
    assert written["evaluations"][0]["scores"]["math"] == vars(recovered.start["math"])


def test_a_finished_refresh_is_read_and_not_repeated(recovered, hurt):
    before = (Path(recovered.run) / "metrics.jsonl").read_bytes()
    again = refresh(hurt, "math", config(), before="pocket", out=recovered.run, options=RECOVER)
    assert again.evaluations == recovered.evaluations
    assert (Path(recovered.run) / "metrics.jsonl").read_bytes() == before


def test_a_refresh_of_an_older_version_goes_on_without_the_options_that_are_gone(recovered, tmp_path):
    out = Path(shutil.copytree(recovered.run, tmp_path / "old"))
    with RunDirectory.open(out) as run:
        stored = run.state["refresh"]
        gone = {"contraction": True, "curvature": False, "fraction": 0.1, "prompts": 64, "samples": 4, "other": "code"}
        run.update(refresh=stored | {"options": stored["options"] | gone})
    found = continue_refresh(out)
    assert (found.options, found.evaluations) == (recovered.options, recovered.evaluations)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": LIMIT}, r"started with steps=20, and 4 is asked for"),
        ({"domain": "qa"}, r"started with domain=math, and qa is asked for"),
    ],
)
def test_other_settings_are_refused_in_a_folder_that_is_taken(change, message, recovered, hurt):
    given = {"domain": "math", "before": "pocket", "options": RECOVER} | change
    domain = given.pop("domain")
    with pytest.raises(RunError, match=message):
        refresh(hurt, domain, config(), out=recovered.run, **given)


def test_another_configuration_is_refused_there_too(recovered, hurt):
    other = config(evaluation={"prompts": 8})
    with pytest.raises(RunError, match=r"another configuration \(evaluation differ\)"):
        refresh(hurt, "math", other, before="pocket", out=recovered.run, options=RECOVER)


def test_a_domain_that_did_not_fall_is_left_alone(tmp_path):
    found = refresh("pocket", "math", config(), out=tmp_path / "x", options=RefreshOptions(former=0.1))
    assert (found.stopped, found.steps, found.checkpoint) == ("nothing", 0, None)
    assert found.sentences()[0].startswith("Nothing to recover: math scores")
    assert not (tmp_path / "x" / "metrics.jsonl").exists()
    state = json.loads((tmp_path / "x" / "run.json").read_text())
    assert (state["status"], state["steps"]) == ("done", 0)


@pytest.mark.slow
def test_a_killed_refresh_goes_on_with_the_same_numbers(hurt, tmp_path):
    whole = refresh(hurt, "math", config(**FEW), out=tmp_path / "a" / "run", options=LIMIT)
    assert whole.stopped == "limit"
    with pytest.raises(Stop):
        refresh(hurt, "math", config(**FEW), out=tmp_path / "b" / "run", options=LIMIT, reporter=Stopping(3, Stop()))
    again = refresh(hurt, "math", config(**FEW), out=tmp_path / "b" / "run", options=LIMIT)
    for name in ("metrics.jsonl", "evals.jsonl"):
        assert lines(whole.run, name) == lines(again.run, name)
    assert again.evaluations == whole.evaluations
    last = "checkpoints/step-4/model.safetensors"
    assert (Path(again.run) / last).read_bytes() == (Path(whole.run) / last).read_bytes()


def test_an_interrupted_refresh_leaves_its_result_so_far(hurt, tmp_path):
    with pytest.raises(Interrupted):
        refresh(
            hurt, "math", config(**FEW), out=tmp_path / "x", options=LIMIT, reporter=Stopping(3, KeyboardInterrupt())
        )
    written = json.loads((tmp_path / "x" / "recovery" / "refresh.json").read_text())
    assert (written["stopped"], written["steps"]) == ("interrupted", 2)
    assert [look["step"] for look in written["evaluations"]] == [0, 2]


def test_harm_to_another_domain_stops_it(hurt, tmp_path, monkeypatch):
    make = Evaluations.make

    def planted(self, trainer, when):
        rate = float(trainer.state.global_step < 2)
        return [
            replace(score, scores=(rate,) * len(score.scores), mean=rate) if score.domain == "qa" else score
            for score in make(self, trainer, when)
        ]

    monkeypatch.setattr(Evaluations, "make", planted)
    found = refresh(hurt, "math", config(**FEW), out=tmp_path / "x", options=LIMIT)
    assert (found.stopped, found.harmed, found.steps) == ("harmed", "qa", 2)
    assert "It stopped because qa fell." in found.sentences()
    assert "Harmed: qa -1.000" in " ".join(found.sentences())


def test_the_former_score_is_read_from_the_run_that_trained_the_domain(tmp_path):
    settings = config(**FEW, strategy={"name": "sequential", "order": ["math", "code"], "steps": 1}).model_dump(
        mode="json"
    )
    settings["run"] |= {"dir": str(tmp_path), "name": "seq"}
    settings["domains"].pop("qa")
    run = train(parse_config(settings), "seq")
    model = run.checkpoint_path(2)
    found = refresh(model, "math", run.path, out=tmp_path / "back", options=RefreshOptions(steps=2, every=1))
    own = [line for line in run.lines("evals.jsonl") if (line["step"], line["domain"]) == (1, "math")]
    assert found.former.value == pytest.approx(own[0]["mean"])


def test_replay_and_protection_shape_the_configuration():
    def made(**options):
        return refresh_config(config(), "pocket", "math", Path("runs/x"), RefreshOptions(**options))

    alone = made()
    assert (alone.strategy.name, alone.strategy.order, alone.strategy.steps) == ("sequential", ["math"], 40)
    assert alone.run.seed == 1
    replayed = made(replay=0.25)
    shares = {name: domain.share for name, domain in replayed.domains.items()}
    assert shares["math"] / sum(shares.values()) == pytest.approx(0.75)
    assert shares["code"] == shares["qa"]
    assert (replayed.strategy.name, replayed.share_rule, replayed.training["max_steps"]) == ("mixed", "carry", 40)
    protected = made(protect=("qa",))
    assert (protected.strategy.name, protected.strategy.protect) == ("mgs", ["qa"])
    shares = {name: domain.share for name, domain in protected.domains.items()}
    assert shares["math"] / sum(shares.values()) == pytest.approx(0.5)
    assert made(learning_rate=1e-5).training["learning_rate"] == 1e-5


def test_the_learning_rate_is_a_fifth_of_the_trainings():
    def rate(settings, **options):
        return refresh_config(settings, "pocket", "math", Path("runs/x"), RefreshOptions(**options)).training[
            "learning_rate"
        ]

    assert rate(config()) == pytest.approx(3e-4 / 5)
    usual = config(training={"per_device_train_batch_size": 16})
    assert rate(usual) == pytest.approx(1e-6 / 5), "a fifth of TRL's default"


def test_a_change_within_noise_is_not_called_recovered():
    start, now = [0.0, 1.0] * 16, [0.0, 1.0] * 15 + [1.0, 1.0]
    found = standing(0.5, start, now, looks=8)
    assert _words.gained("math", found, 0.03).startswith("math improved, but not proven: +0.031")


@pytest.mark.slow
def test_a_protected_domain_takes_part_in_every_refresh(hurt, tmp_path):
    options = RefreshOptions(steps=2, every=2, former=0.99, protect=("code",), replay=0.5)
    found = refresh(hurt, "math", config(), out=tmp_path / "x", options=options)
    metrics = lines(found.run, "metrics.jsonl")
    assert all("reward/math" in line for line in metrics)
    assert any("reward/code" in line for line in metrics)
    assert any("reward/qa" in line for line in metrics)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"domain": "maths"}, ConfigError, r"no domain 'maths'; did you mean 'math'\?"),
        ({"options": RefreshOptions(protect=("math",))}, ConfigError, r"protect names 'math', the domain that is"),
        ({"options": RefreshOptions(protect=("nobody",))}, ConfigError, r"no domain 'nobody'"),
        ({}, CounterpointError, r"What did math score before it fell\? Give the checkpoint"),
        ({"model": "nowhere/at/all"}, ModelError, r"there is no such folder"),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments, error, message, tmp_path):
    given = {"model": "pocket", "domain": "math"} | arguments
    with pytest.raises(error, match=message):
        refresh(given.pop("model"), given.pop("domain"), config(), out=tmp_path / "x", **given)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replay": 1.0}, r"at least 0 and below 1, found 1.0"),
        ({"steps": 0}, r"steps must be at least 1, found 0"),
        ({"learning_rate": -1.0}, r"learning_rate must be above 0"),
        ({"former": float("nan")}, r"former must be a finite number"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(CounterpointError, match=message):
        RefreshOptions(**options)


def test_a_batch_that_cannot_be_trained_is_refused_before_the_former_score_is_measured(hurt, tmp_path, monkeypatch):
    def evaluated(*_, **__):
        raise AssertionError("evaluated first")

    monkeypatch.setattr(sys.modules["counterpoint.recovery.refresh"], "evaluate_checkpoints", evaluated)
    odd = config(training={"per_device_train_batch_size": 3, "num_generations": 8, "max_completion_length": 8})
    with pytest.raises(ConfigError, match="num_generations"):
        refresh(hurt, "math", odd, out=tmp_path / "out", before="pocket")
    assert not (tmp_path / "out").exists()


def test_a_run_is_no_checkpoint_before_the_fall(hurt, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ModelError, match="is a run directory, and a model is wanted"):
        refresh(hurt, "math", config(), out=tmp_path / "out", before=tmp_path / "run")


def test_replay_needs_other_domains(tmp_path):
    alone = config(domains={"math": {"source": "pocket"}})
    with pytest.raises(DomainError, match=r"replay needs other domains"):
        refresh("pocket", "math", alone, out=tmp_path / "x", options=RefreshOptions(replay=0.5, former=0.9))


def test_a_folder_with_other_files_or_another_run_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"nothing is overwritten"):
        refresh("pocket", "math", config(), out=tmp_path, options=RefreshOptions(former=0.9))
    RunDirectory.create(tmp_path / "run", config()).close()
    with pytest.raises(RunError, match=r"a run that is no refresh"):
        refresh("pocket", "math", config(), out=tmp_path / "run", options=RefreshOptions(former=0.9))


def test_a_domain_that_fell_further_is_told_to_go_slower(tmp_path):
    run = RunDirectory(tmp_path)
    good, bad = [1.0] * 20, [0.0] * 20
    (note,) = _notes(run, "math", {0: {"math": good}, 5: {"math": bad}}, "limit")
    assert "try a lower learning_rate" in note
    assert _notes(run, "math", {0: {"math": bad}, 5: {"math": bad}}, "limit") == []

"""Recover reads a run's losses rightly, does no finished work twice, and keeps the better of two attempts."""

import json
import shutil
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from counterpoint.config import parse_config
from counterpoint.disk import write_json
from counterpoint.errors import ConfigError, CounterpointError, RunError
from counterpoint.pocket import model_path
from counterpoint.recovery import (
    RecoverOptions,
    Refresh,
    RefreshOptions,
    Rollback,
    RollbackOptions,
    _words,
    plan_recovery,
    recover,
)
from counterpoint.recovery._rollback_result import Judged, Measured, Split, Trial
from counterpoint.recovery.recover import Attempt, Recover, better
from counterpoint.recovery.refresh import Look
from counterpoint.runs import RunDirectory
from counterpoint.runs.run import Run
from counterpoint.stats import Estimate, Standing

recover_file = sys.modules["counterpoint.recovery.recover"]

DOMAINS = ("math", "qa", "code")
CONFIG = {
    "model": "pocket",
    "strategy": {"name": "sequential", "order": list(DOMAINS), "steps": 10},
    "domains": {name: {"source": "pocket"} for name in DOMAINS},
    "evaluation": {"prompts": 32, "samples": 2},
    "training": {"max_steps": 30},
}


def scores(mean):
    """32 prompts with that mean, as spread as can be."""
    return [1.0] * round(32 * mean) + [0.0] * (32 - round(32 * mean))


TABLE = {
    # step -> mean of math, qa, code: math falls at once, code rises, qa stays
    0: (0.5, 0.3, 0.2),
    10: (0.9, 0.3, 0.2),
    20: (0.5, 0.9, 0.2),
    30: (0.4, 0.9, 0.9),
}


def make_run(folder, table=TABLE, status="done"):
    """A run directory whose evaluations are made up; its checkpoints are folders of the embedded model's name only."""
    with RunDirectory.create(folder, parse_config(CONFIG)) as run:
        for step, means in table.items():
            for name, mean in zip(DOMAINS, means, strict=True):
                line = {"step": step, "when": "stage", "stage": None, "domain": name, "mean": mean, "low": 0, "high": 1}
                run.append_eval(
                    line
                    | {"greedy": None, "prompts": 32, "samples": 2, "completion_length": 4.0, "truncated": 0.0}
                    | {"seconds": 1.6, "scores": scores(mean)}
                )
        stages = [
            {
                "domains": [name],
                "first_step": 10 * i,
                "last_step": 10 * i + 10,
                "checkpoint": f"checkpoints/step-{10 * i + 10}",
            }
            for i, name in enumerate(DOMAINS)
        ]
        for step in range(1, 31):
            run.append_metrics({"step": step, "step_time": 0.5})
        run.update(stages=stages, steps=30)
        run.finish(status)
    return folder


@pytest.fixture
def run(tmp_path):
    folder = make_run(tmp_path / "run")
    for step in (10, 20, 30):
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (folder / "checkpoints" / f"step-{step}" / "config.json").write_text("{}")
    return folder


def test_the_plan_names_what_fell_and_what_will_be_tried(run):
    found = plan_recovery(run)
    (fallen,) = found.fallen
    assert (fallen.domain, fallen.from_step, fallen.to_step) == ("math", 10, 30)
    assert fallen.since == ("qa", "code")
    assert fallen.change.value == pytest.approx(fallen.now.value - fallen.former.value)
    assert fallen.change.high < 0
    text = " ".join(found.plan)
    assert "math fell from 0.906" in text
    assert "Not lost beyond noise: qa +0.000" in text
    assert "Rollback of math, without training: 11 ways to move weights back are tried on 64 training prompts" in text
    assert "If math is not back then, refresh of math: at most 40 steps, with up to 9 evaluations" in text
    assert not (run / "recovery").exists()
    assert str(found).count("math") > 2


def test_one_domain_alone_can_be_asked_for(run):
    assert [one.domain for one in plan_recovery(run, "math").fallen] == ["math"]
    assert plan_recovery(run, "qa").plan[0].startswith("Nothing to recover: no domain is seen to fall after its own")
    with pytest.raises(ConfigError, match="no domain 'maths'; did you mean 'math'"):
        plan_recovery(run, "maths")


def test_a_fall_within_noise_is_nothing_to_recover_and_nothing_is_written(tmp_path):
    table = TABLE | {20: (0.88, 0.9, 0.2), 30: (0.88, 0.9, 0.9)}
    folder = make_run(tmp_path / "run", table)
    found = recover(folder)
    assert found.sentences()[0].startswith("Nothing to recover: no domain is seen to fall after its own stage (math ")
    assert found.finished
    assert not (folder / "recovery").exists()


def test_a_collapse_in_a_domains_own_stage_is_said(tmp_path):
    """No later stage has done it, so a rollback of later stages cannot mend it."""
    table = {0: (0.5, 0.3, 0.2), 10: (0.1, 0.9, 0.2), 20: (0.1, 0.2, 0.2), 30: (0.1, 0.2, 0.9)}
    found = plan_recovery(make_run(tmp_path / "run", table))
    said = " ".join(found.plan)
    assert found.fallen == ()
    assert "math fell in its own stage, 0.500 -> 0.094 (-0.406" in said
    assert "there is no earlier better checkpoint but the base. Train it again with a lower learning rate." in said
    assert "qa fell in its own stage, 0.906 -> 0.188" in said
    assert "before that stage is step 10, whose checkpoint was not kept" in said


def test_the_correction_is_for_all_comparisons(tmp_path):
    """What decides is the interval for all comparisons of the run at once."""
    folder = make_run(tmp_path / "run")
    found = plan_recovery(folder).fallen[0]
    (since,) = (one for one in Run.open(folder).at_the_end if one.domain == "math")
    assert found.change == since.corrected
    assert since.corrected.high > since.change.high


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_a_run_that_is_not_finished_is_refused(tmp_path, status):
    folder = make_run(tmp_path / "run", status=status)
    with pytest.raises(RunError, match=f"the run is {status}, and only a finished one can be recovered"):
        plan_recovery(folder)


def test_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="there is no run here"):
        recover(tmp_path)


class Fake:
    """Stands in for rollback and refresh: gives the result that it is told to, and counts calls."""

    def __init__(self, monkeypatch, *, rollback=("improved", 0.1), refresh=("back", 0.45), others=0.0, half=0.01):
        self.calls = []
        self.planned = {"rollback": rollback, "refresh": refresh}
        self.change_of_others = Estimate(others, others - half, others + half)
        monkeypatch.setattr(recover_file, "rollback", self._rollback)
        monkeypatch.setattr(recover_file, "refresh", self._refresh)

    def _numbers(self, kind, domain):
        verdict, gain = self.planned[kind]
        own = Estimate(gain, gain - 0.05, gain + 0.05)
        scores = dict.fromkeys(DOMAINS, Estimate(0.9, 0.8, 1.0))
        scores[domain] = Estimate(0.4 + gain, 0.3 + gain, 0.5 + gain)
        changes = dict.fromkeys(DOMAINS, self.change_of_others) | {domain: own}
        return scores, changes, Standing(verdict, own, 0.0), _words.harms(changes, domain, 0.03)

    def _model(self, folder):
        AutoModelForCausalLM.from_pretrained(model_path()).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model_path()).save_pretrained(folder)
        return str(folder)

    def _rollback(self, before, start, domain, config, *, out, options, on_progress):
        self.calls.append(("rollback", domain, str(before), str(start)))
        self._raise("rollback")
        scores, changes, standing, others = self._numbers("rollback", domain)
        wins = standing.verdict in ("back", "improved") and "harmed" not in others.values()
        trial = Trial("mask", 0.1, 1.0, dict.fromkeys(DOMAINS, 0.5))
        moved = {"before": None, "after": None, "mask": 0.1, "matched": 0.1, "uniform": 0.1}
        rows = tuple(Measured(name, 1, share, scores, changes, None) for name, share in moved.items())
        return Rollback(
            str(before), str(start), domain, options, 100, 50, changes[domain], Split(8, 2),
            Split(8, 2), (trial,), rows, (Judged("mask", trial, standing, others, ()),),
            changes, changes, "mask" if wins else "none", self._model(out / "checkpoint") if wins else None,
        )  # fmt: skip

    def _refresh(self, start, domain, config, *, out, before, options, reporter):
        self.calls.append(("refresh", domain, str(start)))
        self._raise("refresh")
        scores, changes, standing, others = self._numbers("refresh", domain)
        return Refresh(
            str(start), before, domain, str(out), self._model(out / "step-5"), options, "limit", None, 5,
            Estimate(0.9, 0.8, 1.0), scores, (Look(5, scores),), changes, standing, others, 1.0,
        )  # fmt: skip

    def _raise(self, kind):
        if isinstance(self.planned[kind], Exception):
            raise self.planned[kind]


def kinds(fake):
    return [call[0] for call in fake.calls]


def test_refresh_follows_where_the_rollback_is_not_enough(run, monkeypatch):
    fake = Fake(monkeypatch)
    found = recover(run)
    last, own = str(run / "checkpoints" / "step-30"), str(run / "checkpoints" / "step-10")
    assert fake.calls == [("rollback", "math", own, last), ("refresh", "math", last)]
    assert [(one.kind, one.outcome) for one in found.attempts] == [("rollback", "improved"), ("refresh", "back")]
    assert found.chosen == ("refresh of math",)
    assert found.finished
    assert (run / "recovery" / "checkpoint" / "model.safetensors").is_file()
    assert found.sentences()[-1].startswith("Recovered: math by refresh. The checkpoint is ")
    data = json.loads((run / "recovery" / "recover.json").read_text())
    assert data["checkpoint"] == str(run / "recovery" / "checkpoint")
    assert data["attempts"][1]["changes"]["qa"]["value"] == 0
    assert data["sentences"] == list(found.sentences())
    fell, tried = found.tables()
    assert tried.text()[1][:2] == ["refresh of math (kept)", "back"]
    assert "The choice between attempts is made on these prompts" in tried.note
    assert fell.text()[0][0] == "math"


def test_a_rollback_that_is_enough_saves_the_refresh_unless_both_are_wanted(run, monkeypatch):
    fake = Fake(monkeypatch, rollback=("back", 0.48))
    assert recover(run).chosen == ("rollback of math",)
    assert kinds(fake) == ["rollback"]
    shutil.rmtree(run / "recovery")
    found = recover(run, options=RecoverOptions("both"))
    assert kinds(fake) == ["rollback", "rollback", "refresh"]
    assert found.chosen == ("rollback of math",)
    shutil.rmtree(run / "recovery")
    recover(run, options=RecoverOptions("refresh"))
    assert kinds(fake)[3:] == ["refresh"]
    with pytest.raises(CounterpointError, match="how='magic': there is no such way; Known: auto"):
        RecoverOptions("magic")


def test_a_change_within_noise_is_never_recovered(run, monkeypatch):
    Fake(monkeypatch, rollback=("not proven", 0.07), refresh=("not proven", 0.07))
    found = recover(run)
    assert (found.chosen, found.checkpoint) == ((), None)
    text = " ".join(found.sentences())
    assert "Refresh of math: math improved, but not proven: +0.070 [+0.020, +0.120]." in text
    assert "Recovered" not in text
    assert "Nothing that was tried raises math beyond noise" in text


def test_harm_to_another_domain_disqualifies(run, monkeypatch):
    Fake(monkeypatch, others=-0.2)
    found = recover(run)
    assert (found.chosen, found.checkpoint) == ((), None)
    assert dict(found.attempts[0].others) == {"qa": "harmed", "code": "harmed"}
    assert not (run / "recovery" / "checkpoint").exists()


def test_no_other_domain_fell_is_said_only_where_a_fall_is_excluded(run, monkeypatch):
    Fake(monkeypatch, others=-0.02, half=0.07)
    text = " ".join(recover(run).sentences())
    assert "Not known whether harmed: qa -0.020 [-0.090, +0.050], code -0.020 [-0.090, +0.050]." in text
    assert "No other domain fell" not in text
    shutil.rmtree(run / "recovery")
    Fake(monkeypatch, others=0.0)
    assert "No other domain fell by more than 0.03 (qa, code)." in " ".join(recover(run).sentences())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CounterpointError("The domain 'math' has 3 training rows."), "failed: The domain 'math' has 3 training rows."),
        (torch.OutOfMemoryError("CUDA out of memory"), "failed: memory ran out (CUDA out of memory)"),
        (MemoryError(), "failed: memory ran out (MemoryError)"),
    ],
)
def test_a_failed_attempt_is_noted_and_the_next_one_is_made(run, monkeypatch, error, said):
    fake = Fake(monkeypatch, rollback=error)
    found = recover(run)
    assert kinds(fake) == ["rollback", "refresh"]
    assert (found.attempts[0].outcome, found.attempts[0].reason) == ("failed", said)
    assert found.chosen == ("refresh of math",)
    assert f"Rollback of math: {said}" in found.sentences()
    assert _words.read(Recover, run / "recovery" / "recover.json").attempts[0].reason == said


def test_a_bug_is_not_taken_for_a_failed_attempt(run, monkeypatch):
    Fake(monkeypatch, rollback=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        recover(run)


def test_where_every_attempt_failed_nothing_is_written_and_other_options_may_be_tried(run, monkeypatch):
    Fake(monkeypatch, rollback=CounterpointError("no"), refresh=CounterpointError("no"))
    found = recover(run)
    assert [one.outcome for one in found.attempts] == ["failed", "failed"]
    assert not (run / "recovery" / "recover.json").exists()
    Fake(monkeypatch)
    assert recover(run, options=RecoverOptions(rollback=RollbackOptions(prompts=16))).chosen == ("refresh of math",)


def test_a_finished_recovery_is_not_repeated_and_a_killed_one_goes_on(run, monkeypatch):
    fake = Fake(monkeypatch)
    first = recover(run)
    assert recover(run) == first
    assert len(fake.calls) == 2
    # killed after the rollback: the result of the whole recovery is not there
    (run / "recovery" / "recover.json").unlink()
    shutil.rmtree(run / "recovery" / "checkpoint")
    assert recover(run).chosen == ("refresh of math",)


def test_other_options_in_a_finished_recovery_are_refused(run, monkeypatch):
    Fake(monkeypatch)
    recover(run)
    with pytest.raises(RunError, match="holds a recovery with other options"):
        recover(run, options=RecoverOptions(refresh=RefreshOptions(steps=5)))
    write_json(run / "recovery" / "recover.json", {"schema": "torn"})
    with pytest.raises(RunError, match="cannot be read"):
        recover(run)


def test_other_options_in_an_attempts_folder_are_refused_and_not_a_failed_attempt(run, monkeypatch):
    Fake(monkeypatch, rollback=_words.TakenError("rollback.json: holds a rollback with other options"))
    with pytest.raises(RunError, match="holds a rollback with other options"):
        recover(run)


def test_several_fallen_domains_go_one_after_another_the_worst_first(tmp_path, monkeypatch):
    table = TABLE | {30: (0.1, 0.4, 0.9)}
    folder = make_run(tmp_path / "run", table)
    for step in (10, 20, 30):
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (folder / "checkpoints" / f"step-{step}" / "config.json").write_text("{}")
    fake = Fake(monkeypatch, rollback=("back", 0.5))
    found = recover(folder)
    assert [one.domain for one in found.fallen] == ["math", "qa"]
    assert any("the worst first: math, then qa" in line for line in found.plan)
    recovered = str(folder / "recovery" / "rollback-math" / "checkpoint")
    assert fake.calls[1] == ("rollback", "qa", str(folder / "checkpoints" / "step-20"), recovered)
    assert found.chosen == ("rollback of math", "rollback of qa")


def test_without_the_stages_checkpoint_there_is_a_refresh_alone(run, monkeypatch):
    shutil.rmtree(run / "checkpoints" / "step-10")
    fake = Fake(monkeypatch)
    found = recover(run)
    assert any("No rollback of math: the checkpoint after its own stage was not kept" in line for line in found.plan)
    assert kinds(fake) == ["refresh"]


def test_checkpoints_of_elsewhere_need_a_configuration_and_three_names(run, tmp_path, monkeypatch):
    fake = Fake(monkeypatch)
    with pytest.raises(CounterpointError, match=r"need domain, before .* and after"):
        recover(run / "config.yaml", "math", after="b")
    found = recover(run / "config.yaml", "math", before="a", after="b", out=tmp_path / "out")
    assert fake.calls == [("rollback", "math", "a", "b"), ("refresh", "math", "b")]
    assert found.checkpoint == str(tmp_path / "out" / "checkpoint")
    assert recover(run / "config.yaml", "math", before="a", after="b", out=tmp_path / "out") == found
    with pytest.raises(RunError, match="of another state"):
        recover(run / "config.yaml", "math", before="a", after="c", out=tmp_path / "out")


def test_two_processes_do_not_recover_one_run(run, monkeypatch):
    monkeypatch.setattr(RunDirectory, "lock", lambda self: (_ for _ in ()).throw(RunError("another process")))
    with pytest.raises(RunError, match="another process"):
        recover(run)


def attempt(kind, own, other, outcome="improved", harmed="spared"):
    values = {"math": Estimate(own, own - 0.1, own + 0.1), "qa": Estimate(other, other - 0.1, other + 0.1)}
    return Attempt(kind, "math", "s", "f", outcome, "", "c", values, values, {"qa": harmed})


def test_the_better_attempt_is_the_one_with_the_best_mean_of_those_that_help():
    first, second = attempt("rollback", 0.8, 0.9), attempt("refresh", 0.9, 0.7)
    assert better([first, second]) is first
    assert better([attempt("rollback", 0.9, 0.9, "not proven"), second]) is second
    assert better([attempt("rollback", 0.9, 0.9, harmed="harmed"), second]) is second
    assert better([attempt("rollback", 0.9, 0.9, "not proven")]) is None

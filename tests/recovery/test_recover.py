"""Recover reads a run's losses rightly, does no finished work twice, and keeps the better of two attempts."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import counterpoint.recovery.recovering.attempts as attempts_file
from counterpoint.config import parse_config
from counterpoint.disk import write_json
from counterpoint.errors import RunError
from counterpoint.pocket import model_path
from counterpoint.recovery import RecoverOptions, RollbackOptions, plan_recovery, recover
from counterpoint.recovery.recovering.analysis import better
from counterpoint.recovery.recovering.results import Attempt
from counterpoint.recovery.refreshing.results import RefreshOptions
from counterpoint.runs import RunDirectory
from counterpoint.runs.records import write_checked
from counterpoint.stats import Estimate

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


def test_the_plan_names_what_fell_and_what_it_costs(run):
    found = plan_recovery(run)
    (fallen,) = found.fallen
    assert (fallen.domain, fallen.from_step, fallen.to_step) == ("math", 10, 30)
    assert fallen.since == ("qa", "code")
    assert fallen.change.value == pytest.approx(fallen.now.value - fallen.former.value)
    assert fallen.change.high < 0
    text = " ".join(found.plan)
    assert "math fell from 0.906" in text
    assert "corrected for 3 comparisons" in text
    assert "Not lost beyond noise: qa +0.000" in text
    assert "12 sets of weights and 36 random ones" in text
    # 49 * 64 * 4 * 3 to select, 64 * 4 for the score, 6 * 192 at both ends; 1.6 s for 64 completions
    assert "39,040 completions, about 16 min" in text
    # 40 steps of half a second, 9 evaluations of 4.8 s
    assert "at most 40 steps on math with up to 9 evaluations of all domains, about 63 s at most" in text
    assert "`counterpoint diagnose all" in text
    assert not (run / "recovery").exists()


def test_what_a_diagnosis_said_is_quoted(run):
    total = {"domain": "math", "sentence": "math lost most in layer 1."}
    write_json(run / "diagnosis" / "summary.json", {"totals": [total]})
    assert "Diagnosis: math lost most in layer 1." in plan_recovery(run).plan
    (run / "diagnosis" / "summary.json").write_text("{torn")
    assert any("cannot be read, so what a diagnosis found is left out" in line for line in plan_recovery(run).plan)


def test_a_fall_within_noise_is_nothing_to_recover(tmp_path):
    table = TABLE | {20: (0.88, 0.9, 0.2), 30: (0.88, 0.9, 0.9)}
    folder = make_run(tmp_path / "run", table)
    found = recover(folder)
    assert found.plan[0].startswith("nothing to recover: no domain fell beyond noise after its own stage (math ")
    assert found.finished
    data = json.loads((folder / "recovery" / "recover.json").read_text())
    assert (data["schema"], data["chosen"], data["fallen"]) == ("counterpoint.recovery.recover", "none", [])


def test_the_correction_is_for_all_comparisons(tmp_path):
    """A change that is beyond its own interval and not beyond that of three comparisons is not called a fall."""
    drop = scores(0.9)
    flipped = [0.0] * 4 + drop[4:]
    assert sum(drop) - sum(flipped) == 4
    folder = make_run(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    for line in lines:
        if line["domain"] == "math" and line["step"] >= 20:
            line["scores"] = flipped
    (folder / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plan_recovery(folder).fallen == ()


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_a_run_that_is_not_finished_is_refused(tmp_path, status):
    folder = make_run(tmp_path / "run", status=status)
    with pytest.raises(RunError, match=f"the run is {status}, and only a finished one can be recovered"):
        plan_recovery(folder)


def test_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="there is no run here"):
        recover(tmp_path)


class Fake:
    """Stands in for rollback and refresh: writes the result that it is told to, and counts calls."""

    def __init__(self, monkeypatch, *, rollback=0.5, refresh=0.9, others=0.0):
        self.calls = []
        self.changes = {"rollback": rollback, "refresh": refresh}
        self.others = others
        monkeypatch.setattr(attempts_file, "rollback", self._rollback)
        monkeypatch.setattr(attempts_file, "refresh", self._refresh)

    def _numbers(self, kind, domain):
        now = self.changes[kind]
        scores_of = {name: {"value": 0.9, "low": 0.8, "high": 1.0} for name in DOMAINS}
        scores_of[domain] = {"value": now, "low": now - 0.1, "high": now + 0.1}
        change = {"value": self.others, "low": self.others - 0.05, "high": self.others + 0.05}
        changes = dict.fromkeys(DOMAINS, change) | {domain: {"value": now - 0.4, "low": now - 0.5, "high": now - 0.3}}
        return scores_of, changes

    def _model(self, folder):
        AutoModelForCausalLM.from_pretrained(model_path()).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model_path()).save_pretrained(folder)
        return str(folder)

    def _rollback(self, before, start, domain, config, *, out, options, save, on_progress):
        self.calls.append(("rollback", domain, str(before), str(start)))
        scores_of, changes = self._numbers("rollback", domain)
        row = {"name": "rollback", "draw": None, "scores": scores_of, "changes": changes}
        data = {
            "after": str(start),
            "stopped": None,
            "tried": [1],
            "reported": [row],
            "seconds": 1.0,
            "verdict": "said",
        }
        write_json(save, data | {"checkpoint": self._model(out), "options": attempts_file.plain(options)})

    def _refresh(self, start, domain, config, *, out, options, reporter):
        self.calls.append(("refresh", domain, str(start)))
        scores_of, changes = self._numbers("refresh", domain)
        data = {"stopped": "recovered", "evaluations": [{"step": 5, "scores": scores_of}], "changes": changes}
        more = {"seconds": 1.0, "verdict": "said", "checkpoint": self._model(out / "checkpoints" / "step-5")}
        write_json(out / "recovery" / "refresh.json", data | more)


def test_refresh_follows_where_the_rollback_is_not_enough(run, monkeypatch):
    fake = Fake(monkeypatch, rollback=0.5, refresh=0.9)
    found = recover(run)
    last, own = str(run / "checkpoints" / "step-30"), str(run / "checkpoints" / "step-10")
    assert fake.calls == [("rollback", "math", own, last), ("refresh", "math", last)]
    assert [(one.kind, one.back) for one in found.attempts] == [("rollback", False), ("refresh", True)]
    assert found.chosen == "refresh"
    assert found.finished
    assert (run / "recovery" / "checkpoint" / "model.safetensors").is_file()
    assert found.sentences[-1].startswith("Recovered: math by refresh. The checkpoint is ")
    data = json.loads((run / "recovery" / "recover.json").read_text())
    assert data["checkpoint"] == str(run / "recovery" / "checkpoint")
    assert data["attempts"][1]["changes"]["qa"]["value"] == 0


def test_a_rollback_that_is_enough_saves_the_refresh_unless_both_are_wanted(run, monkeypatch):
    fake = Fake(monkeypatch, rollback=0.88, refresh=0.86)
    assert recover(run).chosen == "rollback"
    assert [call[0] for call in fake.calls] == ["rollback"]
    shutil.rmtree(run / "recovery")
    found = recover(run, RecoverOptions(both=True))
    assert [call[0] for call in fake.calls] == ["rollback", "rollback", "refresh"]
    assert found.chosen == "rollback"


def test_harm_to_another_domain_disqualifies(run, monkeypatch):
    Fake(monkeypatch, rollback=0.88, refresh=0.88, others=-0.2)
    found = recover(run)
    assert found.chosen == "none"
    assert found.checkpoint is None
    assert found.attempts[0].harmed == ("qa", "code")
    assert found.sentences[-1].startswith("Nothing helped: no attempt brings math up without harm")
    assert not (run / "recovery" / "checkpoint").exists()


def test_a_finished_recovery_is_not_repeated_and_a_killed_one_goes_on(run, monkeypatch):
    fake = Fake(monkeypatch)
    first = recover(run)
    again = recover(run)
    assert len(fake.calls) == 2
    assert (again.chosen, again.checkpoint, again.attempts) == (first.chosen, first.checkpoint, first.attempts)
    # killed after the rollback: its result is there and that of the whole recovery says it is not finished
    file = run / "recovery" / "recover.json"
    data = json.loads(file.read_text())
    write_checked(file, data | {"finished": False, "attempts": data["attempts"][:1]})
    shutil.rmtree(run / "recovery" / "refresh-math")
    shutil.rmtree(run / "recovery" / "checkpoint")
    assert recover(run).chosen == "refresh"
    assert [call[0] for call in fake.calls] == ["rollback", "refresh", "refresh"]


def test_a_killed_rollback_is_done_again(run, monkeypatch):
    """Killed between the checkpoint and its result: the folder is there and nothing says what is in it."""
    fake = Fake(monkeypatch, rollback=0.88)
    recover(run)
    (run / "recovery" / "recover.json").unlink()
    (run / "recovery" / "rollback-math" / "rollback.json").unlink()
    recover(run)
    assert [call[0] for call in fake.calls] == ["rollback", "rollback"]


def test_other_options_in_a_finished_recovery_are_refused(run, monkeypatch):
    Fake(monkeypatch)
    recover(run)
    with pytest.raises(RunError, match="holds a recovery with other options"):
        recover(run, RecoverOptions(refresh=RefreshOptions(steps=5)))
    (run / "recovery" / "recover.json").unlink()
    with pytest.raises(RunError, match="holds a rollback with other options"):
        recover(run, RecoverOptions(rollback=RollbackOptions(draws=1)))


def test_several_fallen_domains_go_one_after_another_the_worst_first(tmp_path, monkeypatch):
    table = TABLE | {30: (0.1, 0.4, 0.9)}
    folder = make_run(tmp_path / "run", table)
    for step in (10, 20, 30):
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (folder / "checkpoints" / f"step-{step}" / "config.json").write_text("{}")
    fake = Fake(monkeypatch, rollback=0.9)
    found = recover(folder)
    assert [one.domain for one in found.fallen] == ["math", "qa"]
    assert any("the worst first: math, then qa" in line for line in found.plan)
    recovered = str(folder / "recovery" / "rollback-math" / "checkpoint")
    assert fake.calls[1] == ("rollback", "qa", str(folder / "checkpoints" / "step-20"), recovered)


def test_without_the_stages_checkpoint_there_is_a_refresh_alone(run, monkeypatch):
    shutil.rmtree(run / "checkpoints" / "step-10")
    fake = Fake(monkeypatch)
    found = recover(run)
    assert any(
        "No rollback for math: the checkpoint after its stage (step 10) was not kept" in line for line in found.plan
    )
    assert [call[0] for call in fake.calls] == ["refresh"]


def test_two_processes_do_not_recover_one_run(run, monkeypatch):
    monkeypatch.setattr(RunDirectory, "lock", lambda self: (_ for _ in ()).throw(RunError("another process")))
    with pytest.raises(RunError, match="another process"):
        recover(run)


def attempt(kind, own, other, low=0.01, harmed=()):
    values = {"math": Estimate(own, own - 0.1, own + 0.1), "qa": Estimate(other, other - 0.1, other + 0.1)}
    changes = {"math": Estimate(0.1, low, 0.2), "qa": Estimate(0, -1, 1)}
    return Attempt(kind, "math", "s", "f", "j", "c", values, changes, False, harmed, False, 1.0, "")


def test_the_better_attempt_is_the_one_with_the_best_mean_of_those_that_help():
    first, second = attempt("rollback", 0.8, 0.9), attempt("refresh", 0.9, 0.7)
    assert better([first, second]) is first
    assert better([attempt("rollback", 0.9, 0.9, low=-0.01), second]) is second
    assert better([attempt("rollback", 0.9, 0.9, harmed=("qa",)), second]) is second
    assert better([attempt("rollback", 0.9, 0.9, low=-0.01)]) is None

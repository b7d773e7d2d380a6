"""Jobs in child processes, played by a script: order, failures, resuming, one process at a time, and stopping."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from counterpoint.errors import RunError
from counterpoint.runs import Reporter
from counterpoint.study import StudyFolder, check_unchanged, plan_jobs, run, run_jobs
from study.studies import base, plant_run, run_state, study_of

PLAYER = """
import json, os, pathlib, signal, sys, time
with open({log!r}, "a") as log:
    log.write(json.dumps(dict(arguments=sys.argv[1:], at=time.time(), threads=os.environ["OMP_NUM_THREADS"])) + "\\n")
step, runs = sys.argv[1], pathlib.Path({runs!r})
name = pathlib.Path(sys.argv[-1]).stem if step == "train" else sys.argv[3]
behaviour = json.loads(pathlib.Path({behaviour!r}).read_text()).get(name, "")
if behaviour == "fail":
    print("working"); print("Error: the learning rate is far"); print("too high."); sys.exit(1)
if behaviour == "crash":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    time.sleep(60)
time.sleep(0.15)
if step == "train":
    run = runs / name
    (run / "checkpoints" / "step-6").mkdir(parents=True, exist_ok=True)
    (run / "checkpoints" / "step-6" / "optimizer.pt").write_text("state")
    (run / "checkpoints" / "step-6" / "config.json").write_text("{{}}")
    (run / "run.json").write_text({state!r})
elif sys.argv[-1] == "evaluate":
    (runs / name).mkdir(parents=True, exist_ok=True)
    (runs / name / "scores.jsonl").write_text("")
elif behaviour != "nothing":
    (runs / name / "checkpoint").mkdir(parents=True)
    (runs / name / "checkpoint" / "config.json").write_text("{{}}")
"""

ROWS = {
    "base": "base",
    "mixed": "mixed",
    "experts": "experts",
    "merged": {"kind": "merge", "of": "experts", "method": "average"},
}


class Heard(Reporter):
    def __init__(self):
        self.ends, self.asked = [], []

    def message(self, text):
        self.ends.append(text)

    def working(self, what, done, total, note=""):
        assert what == "study"  # one task for all jobs, so that the time left is of the whole
        self.asked.append(note.count("-seed-"))

    @property
    def names(self):
        """The jobs that ended."""
        return {text.split("] ")[1].split(": ")[0] for text in self.ends}


def failed(records):
    return [record for record in records.values() if record.status == "failed"]


class Stage:
    """A study whose jobs the player plays."""

    def __init__(self, tmp_path, monkeypatch, rows=ROWS, **keys):
        self.folder = StudyFolder(tmp_path / "studies" / "tiny")
        self.study = study_of(tmp_path, rows, **keys)
        self.jobs = plan_jobs(self.study, self.folder.runs)
        self.log, self.behaviour = tmp_path / "played.jsonl", tmp_path / "behaviour.json"
        self.plays({})
        script = tmp_path / "player.py"
        places = {"log": str(self.log), "behaviour": str(self.behaviour), "runs": str(self.folder.runs)}
        script.write_text(PLAYER.format(**places, state=json.dumps(run_state())))
        monkeypatch.setattr(run, "TRAIN", (sys.executable, str(script), "train"))
        monkeypatch.setattr(run, "MAKE", (sys.executable, str(script), "make"))

    def plays(self, behaviour):
        self.behaviour.write_text(json.dumps(behaviour))

    def run(self, parallel=2):
        heard = Heard()
        with self.folder:
            return run_jobs(self.jobs, self.folder, parallel, heard), heard

    def played(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def stage(tmp_path, monkeypatch):
    return Stage(tmp_path, monkeypatch)


def test_every_job_runs_once_after_those_it_needs(stage):
    records, heard = stage.run()
    assert {record.status for record in records.values()} == {"done"}
    assert len(heard.ends) == len(stage.jobs) == 9
    assert heard.ends[-1].startswith("[9/9]")
    commands = [line["arguments"] for line in stage.played()]
    place = {job.id: [i for i, c in enumerate(commands) if job.id in "/".join(c)] for job in stage.jobs}
    assert all(max(place[need]) < min(place[job.id]) for job in stage.jobs for need in job.needs)
    steps = [c[-1] for c in commands if "merged-seed-1" in c]
    assert steps == ["make", "evaluate"]
    assert commands.count(["train", str(stage.folder.config("mixed-seed-0"))]) == 1
    assert stage.folder.record("merged-seed-1").needs == ["experts-math-seed-1", "experts-code-seed-1"]
    assert max(heard.asked) == 2


def test_a_second_call_does_nothing_and_new_rows_alone_are_run(stage, tmp_path, monkeypatch):
    stage.run()
    before = len(stage.played())
    stage.run()
    assert len(stage.played()) == before
    more = Stage(tmp_path, monkeypatch, {**ROWS, "mgs": "mgs"}, seeds=3)
    _, heard = more.run()
    assert heard.names == {
        *("mgs-seed-0", "mgs-seed-1", "mgs-seed-2", "mixed-seed-2", "merged-seed-2"),
        *("experts-math-seed-2", "experts-code-seed-2"),
    }


def test_what_fails_does_not_stop_the_others_and_is_run_again_next_time(stage):
    stage.plays({"experts-math-seed-0": "fail", "mixed-seed-1": "crash"})
    records, _ = stage.run()
    assert {record.id: record.reason for record in failed(records)} == {
        "experts-math-seed-0": "the learning rate is far too high.",
        "mixed-seed-1": "ended by signal 9 (SIGKILL)",
        "merged-seed-0": "needs experts-math-seed-0, which failed",
    }
    assert stage.folder.record("mixed-seed-0").status == "done"
    stage.plays({})
    records, heard = stage.run()
    assert not failed(records)
    assert heard.names == {"experts-math-seed-0", "mixed-seed-1", "merged-seed-0"}


def test_a_command_that_leaves_nothing_has_failed(stage):
    stage.plays({"merged-seed-0": "nothing", "merged-seed-1": "nothing"})
    records, _ = stage.run()
    assert all("ended without its result" in records[f"merged-seed-{seed}"].reason for seed in (0, 1))


def test_cores_are_shared_and_the_optimizers_state_is_removed(stage, monkeypatch):
    monkeypatch.setattr("counterpoint.study.run.cores", lambda: 8)
    stage.run(parallel=3)
    assert {line["threads"] for line in stage.played()} == {"2"}
    assert not list(stage.folder.runs.rglob("optimizer.pt"))
    assert (stage.folder.run("mixed-seed-0") / "checkpoints" / "step-6" / "config.json").exists()


def test_a_run_that_was_whole_before_its_record_is_not_repeated(stage):
    job = next(job for job in stage.jobs if job.id == "mixed-seed-0")
    plant_run(stage.folder, job, {"math": 0.5, "code": 0.5})
    (stage.folder.path / "jobs" / "mixed-seed-0.json").unlink()
    stage.run()
    assert not [line for line in stage.played() if "mixed-seed-0" in line["arguments"][-1]]
    assert stage.folder.record("mixed-seed-0").status == "done"


def test_a_run_that_was_killed_goes_on_and_one_without_a_run_starts_afresh(stage):
    begun, empty = stage.folder.run("mixed-seed-0"), stage.folder.run("mixed-seed-1")
    begun.mkdir(parents=True)
    (begun / "run.json").write_text(json.dumps(run_state("running")))
    empty.mkdir(parents=True)
    (empty / "config.yaml").write_text("")
    stage.run()
    commands = [line["arguments"] for line in stage.played()]
    assert ["train", "--resume", str(begun)] in commands
    assert ["train", str(stage.folder.config("mixed-seed-1"))] in commands


def test_two_processes_cannot_run_one_study(stage, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from counterpoint.study import StudyFolder\n"
        f"with StudyFolder(Path({str(stage.folder.path)!r})): print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"in\n"
    with pytest.raises(RunError, match="another process is running this study"):
        stage.run()
    other.kill()
    other.wait()
    other.stdout.close()
    assert stage.run()[0]


def test_a_child_that_outlives_its_study_keeps_others_out(stage, tmp_path):
    """The lock is inherited: a study killed with SIGKILL is not run again beside its own last runs."""
    holder = StudyFolder(stage.folder.path)
    with holder:
        orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(holder.lock_handle,))
    with pytest.raises(RunError, match="runs of one that was killed are still"):
        stage.run()
    orphan.kill()
    orphan.wait()
    assert stage.run()[0]


def test_sigterm_lets_children_save_and_the_next_call_goes_on(stage, monkeypatch):
    stage.plays({"mixed-seed-0": "wait"})
    monkeypatch.setattr(run, "LOOK_S", 0.5)

    class Stopper(Heard):
        def working(self, what, done, total, note=""):
            if any(line["arguments"][-1].endswith("mixed-seed-0.yaml") for line in stage.waiting_play()):
                os.kill(os.getpid(), signal.SIGTERM)

    stage.waiting_play = stage.played
    before = signal.getsignal(signal.SIGTERM)
    started = time.monotonic()
    with stage.folder, pytest.raises(KeyboardInterrupt):
        run_jobs(stage.jobs, stage.folder, 2, Stopper())
    assert time.monotonic() - started < 30
    assert signal.getsignal(signal.SIGTERM) == before
    assert stage.folder.record("mixed-seed-0").status == "interrupted"
    stage.plays({})
    records, _ = stage.run()
    assert {record.status for record in records.values()} == {"done"}


def test_changed_settings_of_what_has_started_are_refused(stage, tmp_path, monkeypatch):
    stage.run()
    check_unchanged(stage.jobs, stage.folder)
    keys = base()
    keys["training"]["learning_rate"] = 0.5
    changed = Stage(tmp_path, monkeypatch, ROWS, config=keys)
    with pytest.raises(RunError) as caught:
        check_unchanged(changed.jobs, changed.folder)
    assert "mixed-seed-0: training.learning_rate was 0.001 and is 0.5" in str(caught.value)
    assert "give the row another name" in str(caught.value)
    merge = {**ROWS, "merged": {"kind": "merge", "of": "experts", "method": "ties"}}
    with pytest.raises(RunError, match="merged-seed-0: method was 'average' and is 'ties'"):
        check_unchanged(Stage(tmp_path, monkeypatch, merge).jobs, stage.folder)
    renamed = {**ROWS, "mixed": {"strategy": "mixed", "description": "plain"}, "new": "mgs"}
    check_unchanged(Stage(tmp_path, monkeypatch, renamed, seeds=3).jobs, stage.folder)


def test_reasons_are_the_last_error_and_short():
    printed = b"Traceback\nValueError: " + b"x" * 1000
    assert run.reason_of(printed, 1) == "ValueError: " + "x" * (run.LONGEST_REASON - 12) + "..."
    assert run.reason_of(b"Error: no\nworking\nError: the rate\nis far too high.", 1) == "the rate is far too high."
    assert run.reason_of(b"", 3) == "exit status 3"

"""Run directories: nothing overwritten, nothing half written, one writer."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from counterpoint.config import parse_config
from counterpoint.disk import check_disk, disk_errors
from counterpoint.errors import RunError
from counterpoint.runs import RunDirectory, write_json, write_text
from counterpoint.runs.grams import gram_line, read_grams
from counterpoint.runs.seals import Sealer, check_seal, cut_to
from gram_files import write_grams


@pytest.fixture
def config():
    return parse_config({"domains": {"math": {"source": "pocket"}, "code": {"source": "pocket"}}, "strategy": "mgs"})


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_create_writes_config_environment_and_state(tmp_path, config):
    with RunDirectory.create(tmp_path / "runs" / "one", config) as run:
        state = run.state
        assert run.config_path.read_text() == config.to_yaml()
    assert (state["name"], state["strategy"], state["domains"]) == ("one", "mgs", ["math", "code"])
    assert (state["status"], state["ended"], state["stages"]) == ("running", None, [])
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["packages"]["trl"]
    assert str(tmp_path) not in json.dumps(environment["packages"])


def test_a_run_is_never_overwritten(tmp_path, config):
    with RunDirectory.create(tmp_path / "one", config) as run:
        run.append_metrics({"step": 1})
    before = {path: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    with pytest.raises(RunError, match=r"already holds a run, which is never overwritten. Continue it with .*--resume"):
        RunDirectory.create(tmp_path / "one", config)
    assert {path: path.read_bytes() for path in (tmp_path / "one").iterdir()} == before


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_a_run_that_made_no_step_gives_way_to_a_new_one(tmp_path, config, status):
    with RunDirectory.create(tmp_path / "one", config) as run:
        (run.path / "evals.jsonl").write_text("{}")
        (run.path / "trackers" / "stage-1").mkdir(parents=True)
        (run.path / "notes.txt").write_text("kept")
        run.finish(status)
    with RunDirectory.create(tmp_path / "one", config) as run:
        assert run.state["status"] == "running"
    assert {path.name for path in run.path.iterdir()} == {
        *(".lock", "config.yaml", "environment.json", "run.json", "notes.txt")
    }


def test_a_folder_with_other_files_is_refused(tmp_path, config):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"is not empty \(found thesis.tex\). Give the run another run.name"):
        RunDirectory.create(tmp_path, config)


def test_an_empty_folder_is_used(tmp_path, config):
    with RunDirectory.create(tmp_path, config) as run:
        assert run.state["status"] == "running"


def test_open_names_the_runs_there_are(tmp_path, config):
    RunDirectory.create(tmp_path / "one", config).close()
    with pytest.raises(RunError, match=r"no run here \(no run.json\). Runs in .*: one\."):
        RunDirectory.open(tmp_path / "two")


def test_lines_survive_and_a_torn_one_is_not_read(tmp_path, config):
    with RunDirectory.create(tmp_path / "one", config) as run:
        for step in (1, 2, 3):
            run.append_metrics({"step": step, "loss": 0.5})
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    (run.path / ".run.json.1.tmp").write_text("{")
    assert [line["step"] for line in run.lines("metrics.jsonl")] == [1, 2]
    RunDirectory.open(run.path).close()
    assert not list(run.path.glob(".*.tmp"))


def test_what_came_after_a_seal_is_cut_and_what_came_before_is_as_it_was(tmp_path, config):
    with RunDirectory.create(tmp_path / "one", config) as run:
        run.append_metrics({"step": 1, "loss": 0.5})
        run.append_samples([{"step": 0, "completion": "é\u2028x"}])
        before = {name: (run.path / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl")}
        sealed = run.seal(1)
        run.append_metrics({"step": 2, "loss": 0.25})
        run.append_eval({"step": 2})
        with (run.path / "samples.jsonl").open("ab") as file:
            file.write(b"torn")
        check_seal(run.path, sealed)
        cut_to(run.path, sealed)
    assert {name: (run.path / name).read_bytes() for name in before} == before
    assert (run.path / "evals.jsonl").read_bytes() == b""


def test_a_seal_of_a_growing_run_is_that_of_one_read_anew_and_reads_what_is_new_alone(tmp_path, config):
    with RunDirectory.create(tmp_path / "one", config) as run:
        for step in range(1, 4):
            run.append_metrics({"step": step})
            run.append_grams(gram_line(step, ["mlp"], ["a", "b"], np.eye(2)[None], ["mlp"], np.ones((1, 2))))
            grown = run.seal(step)
            assert grown == Sealer(run.path).seal(step)
        path = run.path / "metrics.jsonl"
        path.write_bytes(path.read_bytes().replace(b"2", b"7"))
        assert run.seal(3) == grown
        with pytest.raises(RunError, match=r"metrics.jsonl"):
            check_seal(run.path, grown)


def test_grams_are_read_as_they_were_written_and_a_torn_line_costs_that_line(tmp_path):
    path, stream = tmp_path / "grams.jsonl", np.random.default_rng(0)
    gram_SGDD = stream.standard_normal((3, 2, 3, 3)).astype(np.float32)
    gram_SGDD[1, :, 1] = gram_SGDD[1, :, :, 1] = np.nan
    write_grams(path, gram_SGDD, ["mlp", "norm"], ["a", "b", "c"], [4, 8, 12], ["all"])
    found = read_grams(path)
    np.testing.assert_array_equal(found.gram_SGDD, gram_SGDD)
    np.testing.assert_array_equal(found.weights_SKD[:, 0], [[1, 1, 1], [1, np.nan, 1], [1, 1, 1]])
    assert (found.step_S.tolist(), found.groups, found.strategy_groups) == ([4, 8, 12], ("mlp", "norm"), ("all",))
    path.write_bytes(path.read_bytes()[:-20])
    assert read_grams(path).step_S.tolist() == [4, 8]
    whole = path.read_text().splitlines(keepends=True)[0]
    for bad in (whole.replace('"norm"', '"other"'), whole.replace('["a", "b"', '["a", "a"'), whole[:-9] + '"}\n'):
        path.write_text(whole + bad)
        with pytest.raises(RunError, match=r"grams.jsonl, line 2: .*cannot be read"):
            read_grams(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], r"metrics.jsonl: holds 1 lines of the 3"),
        (lambda data: b"", r"metrics.jsonl: holds 0 lines of the 3"),
        (lambda data: data.replace(b"0.5", b"0.7"), r"metrics.jsonl: holds other lines than"),
        (lambda data: data.replace(b"2,", b"2,,"), r"metrics.jsonl, line 2: cannot be read \(no whole JSON"),
        (lambda data: data.replace(b"0.5", b'"x"'), r"metrics.jsonl, line 1: cannot be read \(loss: "),
        (lambda data: b"\xff" + data, r"metrics.jsonl, line 1: cannot be read \(.*utf-8"),
    ],
)
def test_sealed_lines_that_are_lost_or_changed_are_named(damage, message, tmp_path, config):
    with RunDirectory.create(tmp_path / "one", config) as run:
        for step in (1, 2, 3):
            run.append_metrics({"step": step, "loss": 0.5})
    sealed = run.seal(3)
    path = run.path / "metrics.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=message):
        check_seal(run.path, sealed)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b'{"a', b"\xff", b"[" * 9000, b'{"name": 1}', b"9" * 9000])
def test_a_damaged_state_is_one_sentence(content, tmp_path, config):
    with RunDirectory.create(tmp_path / "one", config) as run:
        (run.path / "run.json").write_bytes(content)
        with pytest.raises(RunError, match=r"run.json: cannot be read \(.*\)\. Restore it from a copy"):
            _ = run.state


def test_a_state_that_was_changed_is_noticed(tmp_path, config):
    with RunDirectory.create(tmp_path / "one", config) as run:
        path = run.path / "run.json"
        path.write_text(path.read_text().replace('"steps": 0', '"steps": 1'))
        with pytest.raises(RunError, match=r"run.json: cannot be read \(it was changed since it was written"):
            _ = run.state


@pytest.mark.parametrize("damaged", [None, b"{torn"])
def test_the_environment_is_written_anew_where_it_is_lost_and_refused_where_it_is_damaged(damaged, tmp_path, config):
    with RunDirectory.create(tmp_path / "one", config) as run:
        path = run.path / "environment.json"
        path.unlink() if damaged is None else path.write_bytes(damaged)
        if damaged is None:
            run.add_environment(ranks=2)
            assert json.loads(path.read_text())["packages"]["trl"]
        else:
            with pytest.raises(RunError, match=r"environment.json: cannot be read .*Remove it, and it is written anew"):
                run.add_environment(ranks=2)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(number, tmp_path, config, monkeypatch):
    def lockf(handle, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.warns(RuntimeWarning, match="knows no locks .* See to it that there is only one"):
        RunDirectory.create(tmp_path / "one", config).close()
    assert RunDirectory.open(tmp_path / "one", write=False).state["status"] == "running"


def test_a_number_that_json_lacks_is_refused(tmp_path, config):
    with RunDirectory.create(tmp_path / "one", config) as run, pytest.raises(ValueError, match="JSON compliant"):
        run.append_metrics({"step": 1, "loss": float("nan")})


def test_only_whole_checkpoints_count_in_the_order_of_steps(tmp_path, config):
    with RunDirectory.create(tmp_path / "one", config) as run:
        for step in (100, 20, 3):
            run.checkpoint_path(step).mkdir(parents=True)
            (run.checkpoint_path(step) / "config.json").write_text("{}")
        run.checkpoint_path(7).mkdir()
        (run.path / "checkpoints" / "step-8.tmp").mkdir()
        assert run.checkpoints() == [(step, run.checkpoint_path(step)) for step in (3, 20, 100)]


@pytest.mark.parametrize("call", ["open(sys.argv[1])", "create(sys.argv[1], None)"])
def test_a_second_process_cannot_write_the_run(tmp_path, config, call):
    code = f"import sys; from counterpoint.runs import RunDirectory; RunDirectory.{call}"
    with RunDirectory.create(tmp_path / "one", config) as run:
        _, error = (process := python(code, run.path)).communicate(timeout=30)
        assert process.returncode == 1
        assert "another process is writing this run" in error
        assert run.config_path.read_text() == config.to_yaml()
    RunDirectory.open(run.path).close()


def test_the_lock_ends_with_a_killed_process_even_if_its_children_live_on(tmp_path, config):
    RunDirectory.create(tmp_path / "one", config).close()
    code = """
        import os, sys, time
        from counterpoint.runs import RunDirectory
        run = RunDirectory.open(sys.argv[1])
        child = os.fork()
        if child == 0:
            time.sleep(60)
        print(child, flush=True)
        time.sleep(60)
    """
    process = python(code, tmp_path / "one")
    child = int(process.stdout.readline())
    try:
        with pytest.raises(RunError, match="another process"):
            RunDirectory.open(tmp_path / "one")
        process.kill()
        process.wait(timeout=10)
        RunDirectory.open(tmp_path / "one").close()
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()
        process.stderr.close()


def test_a_kill_while_writing_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "state.json"
    write_json(path, {"value": 0, "pad": "x" * 100_000})
    code = """
        import sys; from pathlib import Path; from counterpoint.disk import write_json
        print("go", flush=True)
        value = 0
        while True:
            value += 1
            write_json(Path(sys.argv[1]), {"value": value, "pad": "x" * 100_000})
    """
    for pause in (0.05, 0.1, 0.15):
        process = python(code, path)
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=pause)
        process.kill()
        process.communicate()
        assert len(json.loads(path.read_text())["pad"]) == 100_000


def test_a_disk_error_keeps_the_old_file_and_says_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"No space left on device\). The disk is full. Free some space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["file.txt"]


def test_disk_checks(tmp_path):
    with pytest.raises(RunError, match=r"GB are free on this disk and the run needs about"):
        check_disk(tmp_path / "runs" / "one", needed_bytes=10**18)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"is a file, so no run can be kept below it. Set run.dir"):
        check_disk(tmp_path / "file" / "one")
    with pytest.raises(RunError, match=r"is not writable. Set run.dir to a folder that is"), disk_errors(tmp_path):
        raise PermissionError(13, "Permission denied")


def test_update_and_finish(tmp_path, config):
    with RunDirectory.create(tmp_path / "one", config) as run:
        run.update(steps=7)
        run.finish("interrupted")
        run.add_environment(gpu="none")
        assert (run.state["steps"], run.state["status"]) == (7, "interrupted")
        assert run.state["ended"] >= run.state["started"]
        assert json.loads((run.path / "environment.json").read_text())["gpu"] == "none"

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from counterpoint.cli.pocket import app
from counterpoint.errors import DomainError, ModelError
from counterpoint.pocket import TASKS
from counterpoint.pocket.build import Plan, Stage, build, save
from counterpoint.pocket.model import Shape, load

TINY = Plan(
    competence=Stage("competence", steps=30, learning_rate=5e-3, warm_up=5),
    noisy=Stage("noise", steps=4, learning_rate=1e-3, noise=0.6, warm_up=2),
    rows=4,
    shape=Shape(hidden=32, layers=2, heads=2, inner=64),
)


def tiny(plan=TINY):
    return build(plan, lambda *_: None, prompts=4)


@pytest.fixture(scope="module")
def base():
    return tiny()


def weights(base):
    return dict(base.model.state_dict())


def test_a_build_is_the_same_bit_for_bit(base):
    again = tiny()
    assert base.losses == again.losses
    assert base.scores == again.scores
    assert all(torch.equal(weight, weights(again)[name]) for name, weight in weights(base).items())


def test_another_seed_gives_another_base(base):
    assert tiny(replace(TINY, seed=1)).losses != base.losses


def test_the_loss_falls(base):
    losses = base.losses["competence"]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_build_changes_no_global_setting():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    tiny(replace(TINY, threads=1, competence=replace(TINY.competence, steps=1)))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_saved_base_reads_back_exactly(base, tmp_path):
    save(base, tmp_path / "base")
    model, tokenizer = load(tmp_path / "base")
    assert all(torch.equal(weight, weights(base)[name]) for name, weight in model.state_dict().items())
    assert tokenizer.get_vocab() == base.tokenizer.get_vocab()
    record = json.loads((tmp_path / "base" / "build.json").read_text())
    assert record["plan"]["noisy"]["noise"] == 0.6
    assert set(record["scores"]["noise"]) == set(TASKS)


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_the_command_builds_and_shows_what_it_reached(tmp_path):
    result = run("build", "-o", tmp_path / "base", "--steps", 1, "--noisy-steps", 1, "--prompts", 2)
    assert result.exit_code == 0
    assert "writing" in result.output
    assert "competence" in result.output
    shown = run("sample", "math", "-m", tmp_path / "base", "-n", 2)
    assert shown.exit_code == 0
    assert TASKS["math"].generate("test", 1)["prompt"] in shown.output


def test_info_shows_every_domain():
    result = run("info")
    assert result.exit_code == 0
    assert all(name in result.output for name in TASKS)


def test_errors_say_what_to_do(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match=r"is not empty, and nothing is overwritten. Choose another with --output"):
        raise run("build", "-o", tmp_path).exception
    with pytest.raises(ModelError, match=r"mine.txt cannot be made: File exists. Choose another"):
        raise run("build", "-o", tmp_path / "mine.txt").exception
    with pytest.raises(DomainError, match=r"Unknown pocket domain 'maths': did you mean 'math'"):
        raise run("sample", "maths").exception
    with pytest.raises(ModelError, match=r"is no model folder: it holds no config.json"):
        raise run("sample", "math", "-m", tmp_path).exception

import json
from dataclasses import replace

import pytest
import torch

from build_pocket import Plan, Shape, Stage, build, main, save
from counterpoint.pocket import TASKS
from pocket_measure import load

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
    other = tiny(replace(TINY, seed=1, competence=replace(TINY.competence, steps=1)))
    assert other.losses["competence"][0] != base.losses["competence"][0]


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


def test_the_script_builds_and_says_what_it_reached(tmp_path, monkeypatch, capsys):
    few = ["--steps", "1", "--noisy-steps", "1", "--prompts", "2"]
    monkeypatch.setattr("sys.argv", ["build_pocket.py", str(tmp_path / "base"), *few])
    main()
    assert "after competence (greedy/sampled): math" in capsys.readouterr().out
    assert load(tmp_path / "base")[0].num_parameters() > 1e6
    with pytest.raises(SystemExit):  # nothing is overwritten
        main()

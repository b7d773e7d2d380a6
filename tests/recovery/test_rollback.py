"""A whole rollback on the embedded model, with damage planted where the domain's likelihood feels it."""

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import counterpoint.recovery.rolling_back.trials as trials_file
from counterpoint.checkpoints import open_checkpoint
from counterpoint.diagnosis.subject import open_subject
from counterpoint.errors import ConfigError, CounterpointError, ModelError
from counterpoint.pocket import model_path
from counterpoint.recovery import RollbackOptions, rollback

DEAD = 40
"""Neurons of every layer that write nothing, so that what feeds them cannot matter."""

CONFIG = """
model: {path: pocket}
run: {name: test, device: cpu}
strategy: {name: sequential, order: [math, qa], steps: 1}
domains:
  math: {source: pocket}
  qa: {source: pocket}
training: {max_completion_length: 8}
evaluation: {prompts: 48, samples: 2, batch_size: 128}
"""


def plant(model):
    """Large edits of dead neurons' gate rows, and smaller ones of a few live weights, which break the domain."""
    generator = torch.Generator().manual_seed(1)
    state = dict(model.named_parameters())
    live = {}
    with torch.no_grad():
        for name, param in state.items():
            if name.endswith("mlp.gate_proj.weight"):
                change = torch.randn(param[:DEAD].shape, generator=generator)
                param[:DEAD] += change + 5 * change.sign()  # all larger than any edit of a live weight
            if name.endswith("layers.0.mlp.up_proj.weight"):
                chosen = torch.rand(param[DEAD:].shape, generator=generator) < 0.1
                param[DEAD:] += 0.9 * torch.randn(chosen.shape, generator=generator) * chosen
                live[name] = torch.cat([torch.zeros(DEAD, param.shape[1], dtype=torch.bool), chosen])
    return live


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollback")
    model = AutoModelForCausalLM.from_pretrained(model_path())
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith("mlp.down_proj.weight"):
                param[:, :DEAD] = 0
    model.save_pretrained(folder / "before")
    live = plant(model)
    model.save_pretrained(folder / "after")
    for name in ("before", "after"):
        tokenizer.save_pretrained(folder / name)
    (folder / "config.yaml").write_text(CONFIG)
    total = sum(param.numel() for param in model.parameters())
    num_live = sum(int(part.sum()) for part in live.values())
    options = RollbackOptions(budgets=(num_live / total,), scales=(1.0,), draws=1, prompts=32, samples=2)
    return {"folder": folder, "live": live, "num_live": num_live, "options": options}


def restore(place, out=None, **kwargs):
    folder = place["folder"]
    changes = {key: kwargs.pop(key) for key in list(kwargs) if key in vars(place["options"])}
    options = dataclasses.replace(place["options"], **changes)
    given = {"before": folder / "before", "after": folder / "after", "domain": "math", "config": folder / "config.yaml"}
    return rollback(**(given | kwargs), out=out, options=options)


@pytest.fixture(scope="module")
def found(place):
    return restore(place, place["folder"] / "restored", save=place["folder"] / "rollback.json")


def test_damage_finds_the_planted_weights_and_random_ones_do_not_help(place, found):
    rows = {row.name: row for row in found.reported}
    assert found.damage.high < -0.1, "the planted edit breaks math"
    assert found.restored.value > 0.8
    assert found.restored_random.value < 0.3
    assert found.beyond_random["math"].low > 0
    assert found.helped
    assert rows["rollback"].scores["math"].value > rows["random"].scores["math"].value + 0.1
    restored = open_checkpoint(found.checkpoint)
    before, after = (open_checkpoint(place["folder"] / name) for name in ("before", "after"))
    hit = 0
    for name in restored.names:
        ours, theirs = restored.tensor(name), after.tensor(name)
        changed = ours != theirs
        assert torch.equal(ours[changed], before.tensor(name)[changed])
        if name in place["live"]:
            hit += int((changed & place["live"][name]).sum())
    assert hit > 0.7 * place["num_live"], "most restored weights are planted ones"


def test_magnitude_restores_dead_neurons_and_is_the_negative_control(place):
    """The larger edits do no harm; a score that looks at size alone must miss the ones that do."""
    found = restore(place, score="magnitude", force=True)
    tried = {trial.kind: trial.scores["math"] for trial in found.tried}
    assert tried["rollback"] == tried["after"], "dead neurons change nothing"
    assert found.chosen is None
    assert "None of the 1 rollbacks" in found.verdict


def test_what_is_evaluated_is_what_is_written(place, found):
    subject = open_subject(place["folder"] / "config.yaml", found.checkpoint)
    part = trials_file.test_part(subject)
    scores = trials_file.evaluate(subject.model, subject.tokenizer, part.domains, part.plan)
    reported = next(row for row in found.reported if row.name == "rollback")
    for score in scores:
        assert score.mean == reported.scores[score.domain].value


def test_the_json_follows_its_schema(place, found):
    data = json.loads((place["folder"] / "rollback.json").read_text())
    assert (data["schema"], data["version"]) == ("counterpoint.recovery.rollback", 1)
    assert [row["name"] for row in data["reported"]] == ["before", "after", "rollback", "random"]
    assert [trial["kind"] for trial in data["tried"]] == ["after", "rollback", "random"]
    assert data["chosen"] == {"budget": found.chosen.budget, "scale": 1.0, "num_weights": place["num_live"]}
    assert data["checkpoint"] == str(place["folder"] / "restored")
    assert data["selection"]["split"] == "training rows, the last ones"
    assert data["stopped"] is None
    assert set(data["reported"][2]["changes"]["math"]) == {"value", "low", "high"}


def test_selection_never_sees_a_held_out_row(place, monkeypatch):
    seen = []
    evaluate = trials_file.evaluate

    def spy(model, tokenizer, domains, plan, *rest):
        seen.append({row["prompt"] for domain in domains for row in domain.evaluation})
        return evaluate(model, tokenizer, domains, plan, *rest)

    monkeypatch.setattr(trials_file, "evaluate", spy)
    found = restore(place)
    subject = open_subject(place["folder"] / "config.yaml")
    held_out = {row["prompt"] for domain in subject.domains.values() for row in domain.evaluation}
    ends, selection, report = seen[:2], seen[2 : 2 + len(found.tried)], seen[2 + len(found.tried) :]
    assert all(prompts == held_out for prompts in ends + report)
    assert len(report) == 2, "the chosen rollback and one random mask, once each"
    assert len(selection) == 3
    assert all(prompts and not prompts & held_out for prompts in selection)


def test_neurons_on_the_shared_route(place):
    """Every other choice runs from end to end and keeps to its place."""
    found = restore(place, unit="neurons", where="route", other="qa", budgets=(0.01,), fraction=0.5, force=True)
    assert 0 < found.num_candidates < found.num_weights
    assert 0 < found.tried[1].num_weights <= 0.01 * found.num_weights


def test_nothing_damaged_is_nothing_to_recover(place):
    """From the broken model to the whole one math rises."""
    folder = place["folder"]
    found = restore(place, folder / "none", before=folder / "after", after=folder / "before", save=folder / "none.json")
    assert found.verdict.startswith("nothing to recover: math scores ")
    assert "which is a rise" in found.verdict
    assert found.chosen is None
    assert not (folder / "none").exists()
    assert json.loads((folder / "none.json").read_text())["checkpoint"] is None


def test_an_error_on_the_way_never_looks_like_a_result(place):
    """That the budget holds no whole neuron is known only after both ends were measured."""
    folder = place["folder"]
    few = {"score": "magnitude", "unit": "neurons", "budgets": (1e-5,)}
    with pytest.raises(CounterpointError, match="less than the best neuron has"):
        restore(place, **few, force=True, save=folder / "failed.json")
    assert not (folder / "failed.json").exists()
    data = json.loads((folder / "failed.stopped.json").read_text())
    assert data["verdict"] == data["stopped"]
    assert "less than the best neuron has" in data["stopped"]
    assert [row["name"] for row in data["reported"]] == ["before", "after"]


def test_what_was_measured_before_ctrl_c_is_kept(place, monkeypatch):
    file = place["folder"] / "stopped.json"

    def stop(what, done, total):
        if what.startswith("select"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(place, save=file, on_progress=stop)
    assert not file.exists(), "what looks finished is finished"
    data = json.loads((place["folder"] / "stopped.stopped.json").read_text())
    assert data["stopped"] == "Stopped: by hand"
    assert [row["name"] for row in data["reported"]] == ["before", "after"]
    assert data["chosen"] is None


BAD = [
    ({"budgets": (0.5,)}, CounterpointError, "a budget that is larger than the edit: .* weights"),
    ({"budgets": (1e-9,)}, CounterpointError, "is less than one weight, so the mask would be empty"),
    ({"budgets": (0.0,)}, CounterpointError, "above 0 and at most 1; found 0"),
    ({"budgets": (float("nan"),)}, CounterpointError, "above 0 and at most 1; found nan"),
    ({"scales": (1.5,)}, CounterpointError, r"at most 1 \(all the way\); found 1.5"),
    ({"scales": ()}, CounterpointError, "need a number each"),
    ({"score": "opposition"}, CounterpointError, "opposition: there is no such choice; Known: damage, magnitude"),
    ({"unit": "neuron"}, CounterpointError, "did you mean 'neurons'"),
    ({"where": "route"}, CounterpointError, "Name the later domain with --other"),
    ({"where": "route", "other": "math"}, CounterpointError, "--other is math"),
    ({"draws": 0}, CounterpointError, "--draws must be at least 1"),
    ({"prompts": 1}, CounterpointError, "--prompts must be at least 2"),
    ({"fraction": 0.0}, CounterpointError, "--fraction must be above 0"),
    ({"domain": "maths"}, ConfigError, "no domain 'maths'; did you mean 'math'"),
    ({"other": "code"}, ConfigError, "no domain 'code'"),
    ({"before": "/nowhere/at/all"}, ModelError, "no such folder"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "message"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_bad_input_is_refused_before_any_model_is_loaded(place, change, kind, message, monkeypatch):
    monkeypatch.setattr("counterpoint.recovery.rolling_back.work.open_merged", lambda *_: pytest.fail("too late"))
    with pytest.raises(kind, match=message):
        restore(place, **change)


def test_a_folder_that_is_taken_is_refused_first(place, tmp_path, monkeypatch):
    monkeypatch.setattr("counterpoint.recovery.rolling_back.work.open_merged", lambda *_: pytest.fail("too late"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match="is there already, and nothing is overwritten"):
        restore(place, tmp_path)


def test_equal_checkpoints_have_nothing_to_undo(place):
    with pytest.raises(ModelError, match="hold the same weights, so there is nothing to undo"):
        restore(place, before=place["folder"] / "after")

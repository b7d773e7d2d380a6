"""A whole rollback on the embedded model, with damage planted where the domain's likelihood feels it."""

import dataclasses
import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from counterpoint.checkpoints import open_checkpoint
from counterpoint.diagnosis.subject import open_subject
from counterpoint.errors import ConfigError, CounterpointError, ModelError, RunError
from counterpoint.evaluation import EvaluationPlan, evaluate
from counterpoint.pocket import model_path
from counterpoint.recovery import Rollback, RollbackOptions, _words, rollback

rollback_file = sys.modules["counterpoint.recovery.rollback"]

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
    """Large edits of dead neurons' gate rows; and in one tensor edits of one size, of which those of live neurons break
    the domain and those of dead ones cannot matter: so single weights make the difference."""
    generator = torch.Generator().manual_seed(1)
    state = dict(model.named_parameters())
    live = {}
    with torch.no_grad():
        for name, param in state.items():
            if name.endswith("mlp.gate_proj.weight"):
                change = torch.randn(param[:DEAD].shape, generator=generator)
                param[:DEAD] += change + 5 * change.sign()  # all larger than any edit of a live weight
            if name.endswith("layers.0.mlp.up_proj.weight"):
                chosen = torch.rand(param.shape, generator=generator) < 0.05
                chosen[:DEAD] = True
                param += 1.3 * torch.randn(chosen.shape, generator=generator) * chosen
                chosen[:DEAD] = False
                live[name] = chosen
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
    options = RollbackOptions(
        budgets=(num_live / total,), scales=(1.0,), pull_backs=(0.5,), draws=1, prompts=32, samples=2
    )
    return {"folder": folder, "live": live, "num_live": num_live, "options": options}


def restore(place, out=None, **kwargs):
    folder = place["folder"]
    changes = {key: kwargs.pop(key) for key in list(kwargs) if key in vars(place["options"])}
    options = dataclasses.replace(place["options"], **changes)
    given = {"before": folder / "before", "after": folder / "after", "domain": "math", "config": folder / "config.yaml"}
    return rollback(**(given | kwargs), out=out, options=options)


@pytest.fixture(scope="module")
def seen():
    """The prompts of every evaluation of ``found``, in order."""
    return []


@pytest.fixture(scope="module")
def found(place, seen):
    evaluate = rollback_file.evaluate

    def spy(model, tokenizer, domains, plan, *rest):
        seen.append({row["prompt"] for domain in domains for row in domain.evaluation})
        return evaluate(model, tokenizer, domains, plan, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollback_file, "evaluate", spy)
        return restore(place, place["folder"] / "restored")


def test_damage_finds_the_planted_weights_and_random_ones_do_not_help(place, found):
    rows = {row.name: row for row in found.measured}
    assert found.damage.high < -0.1, "the planted edit breaks math"
    assert rows["mask"].restored.value > 0.8
    assert rows["uniform"].restored.value < 0.3
    assert found.ranking_adds["math"].low > 0, "single weights matter here, beyond tensors and sizes"
    assert found.written == "mask"
    assert rows["mask"].scores["math"].value > rows["matched"].scores["math"].value + 0.05
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
    found = restore(place, score="magnitude", pull_backs=())
    tried = {trial.kind: trial.scores["math"] for trial in found.tried}
    assert tried["mask"] == tried["nothing"], "dead neurons change nothing"
    assert (found.written, found.judged) == ("none", ())
    assert "nothing that was tried does better than leaving the weights alone" in " ".join(found.sentences())


def test_a_mask_that_is_no_better_than_its_matched_control_is_not_written(place, tmp_path, monkeypatch):
    """The control is made the mask itself: then the ranking adds nothing, and the pull-back is what is left."""
    monkeypatch.setattr(rollback_file, "MatchedMask", lambda mask, *_: mask)
    found = restore(place, tmp_path / "out", pull_backs=())
    assert found.written == "none"
    assert found.judged[0].standing.verdict in ("back", "improved")
    assert found.judged[0].against == ("does no better than random weights of the same tensors and sizes",)
    assert not (tmp_path / "out" / "checkpoint").exists()
    assert "No checkpoint was written: the mask does no better than random" in " ".join(found.sentences())
    whole = restore(place, tmp_path / "other", pull_backs=(1.0,))
    assert whole.written == "pull-back", "all the way back is the checkpoint before"
    assert open_checkpoint(whole.checkpoint)


def test_a_mask_that_harms_another_domain_is_not_written(place, tmp_path, monkeypatch):
    harm = _words.harms
    monkeypatch.setattr(_words, "harms", lambda *given: dict.fromkeys(harm(*given), "harmed"))
    found = restore(place, tmp_path / "out")
    assert found.written == "none"
    assert found.judged[0].against == ("harms qa",)
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_what_is_evaluated_is_what_is_written(place, found):
    subject = open_subject(place["folder"] / "config.yaml", found.checkpoint)
    plan = EvaluationPlan.of_config(subject.config, subject.config.training["max_completion_length"])
    plan = dataclasses.replace(plan, greedy=False, examples=0)
    for score in evaluate(subject.model, subject.tokenizer, tuple(subject.domains.values()), plan):
        assert score.mean == found.of("mask").scores[score.domain].value


def test_the_same_call_reads_its_result_and_another_one_is_refused(place, found):
    out = place["folder"] / "restored"
    again = restore(place, out, on_progress=lambda *_: pytest.fail("nothing is measured again"))
    assert again == _words.read(Rollback, out / "rollback.json")
    assert (again.written, again.measured[2].scores) == (found.written, found.measured[2].scores)
    with pytest.raises(RunError, match="holds a rollback of math with other options or of other checkpoints"):
        restore(place, out, domain="qa")
    with pytest.raises(RunError, match="nothing is overwritten"):
        restore(place, out, draws=2)
    data = json.loads((out / "rollback.json").read_text())
    assert data["schema"] == "counterpoint.rollback"
    assert data["sentences"] == list(found.sentences())


def test_choosing_never_sees_a_held_out_row_and_controls_are_measured_once(place, found, seen):
    subject = open_subject(place["folder"] / "config.yaml")
    held_out = {row["prompt"] for domain in subject.domains.values() for row in domain.evaluation}
    ends, search, report = seen[:2], seen[2 : 2 + len(found.tried)], seen[2 + len(found.tried) :]
    assert all(prompts == held_out for prompts in ends + report)
    assert [trial.kind for trial in found.tried] == ["nothing", "mask", "pull-back"], "no random mask is searched"
    assert len(report) == len(found.measured) - 2
    assert all(prompts and not prompts & held_out for prompts in search)


def test_nothing_damaged_is_nothing_to_recover(place):
    """From the broken model to the whole one math rises."""
    folder = place["folder"]
    found = restore(place, folder / "none", before=folder / "after", after=folder / "before")
    (said,) = found.sentences()
    assert said.startswith("Nothing to recover: math scores ")
    assert "which is a rise" in said
    assert not (folder / "none" / "checkpoint").exists()
    assert found.nothing


def test_prompts_are_clamped_to_what_a_domain_has(place, monkeypatch):
    few = "  math: {source: {type: pocket, size: 60}}"
    config = place["folder"] / "few.yaml"
    config.write_text(CONFIG.replace("  math: {source: pocket}", few))
    found = restore(place, config=config, pull_backs=(), prompts=40)
    (note,) = found.notes
    assert note.startswith("math has ")
    assert note.endswith("of them are used in each step and not 40.")
    assert found.search.prompts < 40


BAD = [
    ({"budgets": (0.5,)}, CounterpointError, "budgets: 0.5 of .*, more than the .* The largest is"),
    ({"budgets": (1e-9,)}, CounterpointError, "is less than one weight"),
    ({"budgets": (0.0,)}, CounterpointError, "budgets: each must be above 0 and at most 1; found 0"),
    ({"budgets": (float("nan"),)}, CounterpointError, "above 0 and at most 1; found nan"),
    ({"scales": (1.5,)}, CounterpointError, "scales: each must be above 0 and at most 1; found 1.5"),
    ({"scales": ()}, CounterpointError, "need a number each"),
    ({"score": "opposition"}, CounterpointError, "opposition.*there is no such choice; Known: damage, magnitude"),
    ({"draws": 0}, CounterpointError, "draws=0 is too few: it must be at least 1"),
    ({"prompts": 1}, CounterpointError, "prompts=1 is too few: it must be at least 2"),
    ({"domain": "maths"}, ConfigError, "no domain 'maths'; did you mean 'math'"),
    ({"before": "/nowhere/at/all"}, ModelError, "no such folder"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "message"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_bad_input_is_refused_before_any_model_is_loaded(place, change, kind, message, monkeypatch):
    monkeypatch.setattr(rollback_file, "open_subject", lambda *_: pytest.fail("too late"))
    with pytest.raises(kind, match=message):
        restore(place, **change)


def test_a_folder_that_is_taken_is_refused_first(place, tmp_path, monkeypatch):
    monkeypatch.setattr(rollback_file, "open_subject", lambda *_: pytest.fail("too late"))
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "file").write_text("mine")
    with pytest.raises(ModelError, match="is there already, and nothing is overwritten"):
        restore(place, tmp_path)


def test_equal_checkpoints_have_nothing_to_undo(place):
    with pytest.raises(ModelError, match="hold the same weights: there is no edit"):
        restore(place, before=place["folder"] / "after")

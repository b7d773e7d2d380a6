"""A trainer resumed from a checkpoint continues with the numbers of one that was never stopped."""

import shutil

import pytest

from counterpoint.domains.sampler import MixedRows
from counterpoint.errors import RunError
from counterpoint.training import DomainGRPOTrainer
from trainer_helpers import DATA, REWARDS, GradientTape, grpo_args, relative_error

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CLOCKS = (
    "step_time",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
    "total_flos",
)


def build(model, tokenizer, folder, tape=None, strategy="mgs", **overrides):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "max_grad_norm": 1.0} | overrides
    return DomainGRPOTrainer(
        str(model),
        REWARDS,
        grpo_args(folder, strategy=strategy, **settings),
        DATA,
        processing_class=tokenizer,
        callbacks=[tape] if tape else None,
    )


def history(trainer, after):
    return [
        {k: v for k, v in line.items() if k not in CLOCKS} for line in trainer.state.log_history if line["step"] > after
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"steps_per_generation": 8},  # the checkpoint falls into the middle of a generation
        {"num_iterations": 2},
        {"steps_per_generation": 2},
    ],
    ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "default",
)
def test_resumed_equals_uninterrupted(overrides, tiny_model, tiny_tokenizer, tmp_path):
    whole_tape, resumed_tape = GradientTape(), GradientTape()
    whole = build(tiny_model, tiny_tokenizer, tmp_path, whole_tape, **overrides)
    whole.train()

    resumed = build(tiny_model, tiny_tokenizer, tmp_path, resumed_tape, **overrides)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))

    assert history(resumed, after=1) == history(whole, after=1)
    assert len(resumed_tape.steps) == 2
    for mine, theirs in zip(resumed_tape.steps, whole_tape.steps[1:], strict=True):
        assert relative_error(mine, theirs) == 0
    assert resumed.surgeon.step == whole.surgeon.step


def mixed(shares):
    """The same rows, those of ``math`` from two sources."""
    rows = [row | {"domain_source": "ab"[i % 3 == 0]} for i, row in enumerate(DATA["math"])]
    return DATA | {"math": MixedRows(rows, shares)}


def test_a_domain_of_several_sources_is_resumed_and_its_shares_may_not_change(tiny_model, tiny_tokenizer, tmp_path):
    prompts = []

    def see(completions, prompts_seen=prompts, **columns):
        prompts_seen.append(list(columns["domain_source"]))
        return REWARDS["math"](completions)

    def make(shares):
        settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        rewards = REWARDS | {"math": see}
        return DomainGRPOTrainer(
            str(tiny_model), rewards, grpo_args(tmp_path, **settings), mixed(shares), processing_class=tiny_tokenizer
        )

    whole = make({"a": 1, "b": 3})
    whole.train()
    seen = list(prompts)
    prompts.clear()
    assert [sources.count("b") / len(sources) for sources in seen].count(1) == 2, "3 of 4 prompts, two in a step"
    resumed = make({"a": 1, "b": 3})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert history(resumed, after=2) == history(whole, after=2)
    assert prompts == seen[2:]
    with pytest.raises(RunError, match=r"shares of the sources was {'math': {'a': 1, 'b': 3}} and is .*'b': 1"):
        make({"a": 1, "b": 1}).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_another_seed_gives_other_numbers_so_the_comparison_can_fail(tiny_model, tiny_tokenizer, tmp_path):
    whole = build(tiny_model, tiny_tokenizer, tmp_path / "a", max_steps=1)
    other = build(tiny_model, tiny_tokenizer, tmp_path / "b", max_steps=1, seed=1)
    whole.train()
    other.train()
    assert history(whole, after=0) != history(other, after=0)


@pytest.fixture(scope="module")
def trained(tiny_model, tiny_tokenizer, tmp_path_factory):
    """The output folder of two steps, each with its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    build(tiny_model, tiny_tokenizer, folder, max_steps=2).train()
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def test_resume_from_the_last_checkpoint_of_the_output_folder(tiny_model, tiny_tokenizer, folder):
    tape = GradientTape()
    resumed = build(tiny_model, tiny_tokenizer, folder, tape)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3
    assert len(tape.steps) == 1


def test_a_path_names_its_checkpoint_as_a_text_does(tiny_model, tiny_tokenizer, folder):
    tape = GradientTape()
    resumed = build(tiny_model, tiny_tokenizer, folder, tape)
    resumed.train(resume_from_checkpoint=folder / "checkpoint-1")
    assert len(tape.steps) == 2  # from step 1 on, not from the newest


def test_a_checkpoint_of_plain_trl_is_refused(tiny_model, tiny_tokenizer, folder):
    (folder / "checkpoint-2" / "counterpoint_state.json").unlink()
    with pytest.raises(RunError, match="was not written by counterpoint"):
        build(tiny_model, tiny_tokenizer, folder).train(resume_from_checkpoint=True)


def test_resuming_without_any_checkpoint_is_refused(tiny_model, tiny_tokenizer, tmp_path):
    with pytest.raises(RunError, match="holds no checkpoint to resume from"):
        build(tiny_model, tiny_tokenizer, tmp_path).train(resume_from_checkpoint=True)


def test_a_weighting_with_tensors_in_its_memory_is_resumed(tiny_model, tiny_tokenizer, tmp_path):
    pytest.importorskip("torchjd", reason="the extra 'torchjd' is not installed")
    strategy = {"grouping": "module", "weighting": "gradvac"}
    whole = build(tiny_model, tiny_tokenizer, tmp_path, strategy=strategy)
    whole.train()
    resumed = build(tiny_model, tiny_tokenizer, tmp_path, strategy=strategy)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-1")
    assert history(resumed, after=1) == history(whole, after=1)


def test_mixing_saves_where_no_surgeon_can_be_made(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    """Back ends that keep parameters in one flat piece give a Surgeon nothing to work on; plain mixing needs none."""
    from counterpoint.errors import UnsupportedError

    def refuse(self):
        raise UnsupportedError("flattened")

    monkeypatch.setattr(DomainGRPOTrainer, "surgeon", property(refuse))
    whole, resumed = (build(tiny_model, tiny_tokenizer, tmp_path, strategy="mixed") for _ in range(2))
    whole._separable = resumed._separable = False
    whole.train()
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-1")
    assert history(resumed, after=1) == history(whole, after=1)

"""``mixed`` is TRL's own gradient: the installed TRL runs beside ours on the same prompts and completions."""

import pytest
from datasets import Dataset
from trl import GRPOTrainer

from counterpoint.domains.domain_rewards import DOMAIN_COLUMN, build_domain_rewards
from counterpoint.training import DomainGRPOTrainer
from counterpoint.training.backends import PROVEN
from trainer_helpers import DATA, REWARDS, grpo_args, relative_error, shortness, taped, total_norm

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def train_ours(model, tokenizer, folder, strategy="mixed", data=DATA, rewards=REWARDS, shares=None, **overrides):
    args = grpo_args(folder, strategy=strategy, shares=shares, **overrides)
    return taped(DomainGRPOTrainer, str(model), rewards, args, data, tokenizer=tokenizer)


def flat(ours):
    """The rows of all domains as plain TRL takes them, in the order of our index."""
    rows = ours.domain_rows
    places = [rows.place(example) for example in rows.index]
    full = zip(rows.expand(places), places, strict=True)
    return Dataset.from_list([{**row, DOMAIN_COLUMN: domain} for row, (domain, _) in full])


def train_trl(model, tokenizer, folder, ours, rewards=REWARDS, **overrides):
    """Plain TRL on the rows that ours drew, in the same order."""

    class Reference(GRPOTrainer):
        def _get_train_sampler(self, dataset=None):
            ours._sampler.set_epoch(0)
            return ours._sampler

    built, args = build_domain_rewards(rewards, list(ours.domains)), grpo_args(folder, **overrides)
    return taped(Reference, str(model), built, args, flat(ours), tokenizer=tokenizer)[1]


ALLOWED = [(key, value) for key, values in PROVEN.items() for value in values]

PER_DOMAIN = ("batch", "normalize_then_sum")
"""Statistics that are a domain's own, so TRL's where there is one."""


@pytest.mark.parametrize(("key", "value"), ALLOWED)
def test_mixed_gives_trls_own_gradient_under_every_setting_that_is_allowed(
    key, value, tiny_model, tiny_tokenizer, tmp_path
):
    domains = ["math"] if value in PER_DOMAIN else list(DATA)
    rewards = {name: [REWARDS[name], shortness] for name in domains}
    data, settings = {name: DATA[name] for name in domains}, {key: value, "max_steps": 1}
    trainer, ours = train_ours(tiny_model, tiny_tokenizer, tmp_path / "ours", data=data, rewards=rewards, **settings)
    reference = train_trl(tiny_model, tiny_tokenizer, tmp_path / "trl", trainer, rewards, **settings)
    (mine,), (theirs,) = ours, reference
    assert total_norm(theirs) > 1e-3
    assert relative_error(mine, theirs) < 1e-6


@pytest.mark.parametrize("value", PER_DOMAIN)
def test_statistics_of_a_batch_are_each_domains_own_so_not_trls(value, tiny_model, tiny_tokenizer, tmp_path):
    key = next(key for key, values in PROVEN.items() if value in values)
    trainer, ours = train_ours(tiny_model, tiny_tokenizer, tmp_path / "ours", **{key: value}, max_steps=1)
    reference = train_trl(tiny_model, tiny_tokenizer, tmp_path / "trl", trainer, **{key: value}, max_steps=1)
    assert relative_error(ours[0], reference[0]) > 1e-3


@pytest.mark.parametrize(
    "overrides",
    [
        {"steps_per_generation": 2},
        {"num_iterations": 2, "max_steps": 4},
        {"beta": 0.1, "loss_type": "grpo"},
        {
            "multi_objective_aggregation": "sum_then_normalize",
            "importance_sampling_level": "sequence",
            "loss_type": "grpo",
        },
        {"mask_truncated_completions": True},
    ],
    ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()),
)
def test_mixed_stays_trls_gradient_under_other_settings(overrides, tiny_model, tiny_tokenizer, tmp_path):
    trainer, ours = train_ours(tiny_model, tiny_tokenizer, tmp_path / "ours", **overrides)
    reference = train_trl(tiny_model, tiny_tokenizer, tmp_path / "trl", trainer, **overrides)
    assert len(ours) == len(reference)
    assert max(total_norm(gradients) for gradients in reference) > 1e-3
    for mine, theirs in zip(ours, reference, strict=True):
        assert relative_error(mine, theirs) < 2e-6


def test_surgery_differs_from_trl_so_the_comparison_can_fail(tiny_model, tiny_tokenizer, tmp_path):
    trainer, ours = train_ours(tiny_model, tiny_tokenizer, tmp_path / "ours", strategy="mgs", max_steps=1)
    reference = train_trl(tiny_model, tiny_tokenizer, tmp_path / "trl", trainer, max_steps=1)
    assert relative_error(ours[0], reference[0]) > 1e-4
    assert trainer.last_record is not None
    assert (trainer.last_record.weights_GD != 1).any()


def test_one_domain_alone_is_trl_whatever_the_strategy(tiny_model, tiny_tokenizer, tmp_path):
    alone, reward = {"math": DATA["math"]}, {"math": REWARDS["math"]}
    _, surgery = train_ours(tiny_model, tiny_tokenizer, tmp_path / "a", "mgs", alone, reward, max_steps=2)
    _, plain = train_ours(tiny_model, tiny_tokenizer, tmp_path / "b", "mixed", alone, reward, max_steps=2)
    for mine, theirs in zip(surgery, plain, strict=True):
        assert relative_error(mine, theirs) == 0

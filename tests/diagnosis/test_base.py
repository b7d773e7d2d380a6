"""What all analyses stand on: chance levels against brute force, rollouts, surrogate losses, where neurons lie."""

import importlib
import itertools
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from counterpoint import diagnosis
from counterpoint.diagnosis._chance import bootstrap, chance_of, jaccard, jaccard_by_chance
from counterpoint.diagnosis._surrogates import likelihood_loss, log_probs, policy_loss
from counterpoint.diagnosis.rollouts import (
    Rollout,
    Rollouts,
    collate,
    read_rollouts,
    sample_rollouts,
    save_rollouts,
    with_advantages,
)
from counterpoint.errors import CounterpointError
from counterpoint.evaluation.sampling import Completion, Sampling
from counterpoint.series import benjamini_hochberg


@pytest.mark.parametrize(("size_a", "size_b", "total"), [(2, 3, 6), (4, 4, 7), (1, 6, 6), (3, 0, 5)])
def test_overlap_p_value_counts_all_pairs_of_sets(size_a, size_b, total):
    first = set(range(size_a))
    shared = [len(first & set(other)) for other in itertools.combinations(range(total), size_b)]
    for overlap in range(size_a + 2):
        expected = sum(s >= overlap for s in shared) / len(shared)
        assert chance_of(overlap, [(size_a, size_b, total)]).p_value == pytest.approx(expected, abs=1e-12)


def test_overlap_p_value_far_in_the_tail_is_small_and_not_zero():
    assert 0 < chance_of(400, [(1000, 1000, 10_000)]).p_value < 1e-100


def test_two_random_tenths_have_the_jaccard_that_chance_gives():
    assert jaccard_by_chance(100, 100, 1000) == pytest.approx(0.0529, abs=1e-4)
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randperm(1000, generator=generator) < 100 for _ in range(200)]
    mean = sum(jaccard(a, b) for a, b in itertools.pairwise(sets)) / 199
    assert mean == pytest.approx(0.0529, abs=0.003)
    assert jaccard(sets[0], sets[0]) == 1.0


def test_the_jaccard_by_chance_is_an_expectation_and_not_that_of_the_expected_overlap():
    sets = [set(chosen) for chosen in itertools.combinations(range(6), 2)]
    mean = sum(len({0, 1} & own) / len({0, 1} | own) for own in sets) / len(sets)
    assert jaccard_by_chance(2, 2, 6) == pytest.approx(mean, abs=1e-12)
    pairs = [(a, b) for a in ({0}, {1}, {2}) for b in sets]  # one of three in one layer, two of six in the other
    within = [(len({0} & a) + len({0, 1} & b), len({0} | a) + len({0, 1} | b)) for a, b in pairs]
    found = chance_of(2, [(1, 1, 3), (2, 2, 6)])
    assert found.jaccard == pytest.approx(sum(both / either for both, either in within) / len(pairs), abs=1e-12)
    assert found.p_value == pytest.approx(sum(both >= 2 for both, _ in within) / len(pairs), abs=1e-12)


def test_benjamini_hochberg_keeps_the_rate_of_false_discoveries():
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == [True, True, True, True]
    assert benjamini_hochberg([0.01, 0.9, 0.02, 0.06]) == [True, False, True, False]
    assert benjamini_hochberg([]) == []


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(1)
    hits = 0
    for i in range(200):
        values = torch.randn(60, generator=generator)
        found = bootstrap(values, lambda resamples: resamples.mean(1), draws=300, seed=i)
        hits += found.low <= 0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def rollouts():
    items = [
        Rollout(group, (5, 6, 7)[: 2 + group], (8, 9, 1)[: 1 + i % 3], float(i % 2), 0.0)
        for group in range(3)
        for i in range(2 if group < 2 else 1)
    ]
    return Rollouts("math", with_advantages(items))


def test_advantages_are_normalised_among_the_completions_of_a_prompt():
    found = rollouts()
    std = math.sqrt(0.5)
    assert [round(item.advantage, 6) for item in found.items[:2]] == [
        round(-0.5 / (std + 1e-4), 6),
        round(0.5 / (std + 1e-4), 6),
    ]
    assert found.items[4].advantage == 0, "one completion alone has nothing to be compared with"
    assert len(found.informative) == 4


def test_rewards_equal_up_to_rounding_teach_nothing():
    rewards = [0.1 + 0.2, 0.3, 0.3]
    found = with_advantages([Rollout(0, (1,), (2,), reward, 5.0) for reward in rewards])
    assert [item.advantage for item in found] == [0.0, 0.0, 0.0]


def test_a_completion_without_a_reward_is_left_out_of_its_group_and_is_no_zero(monkeypatch):
    completions = [Completion("x", 2, False, (5, 6))] * 6
    totals = [1.0, None, 1.0, 0.0, 1.0, None]
    monkeypatch.setattr("counterpoint.diagnosis.rollouts.generate", lambda *_: completions)
    monkeypatch.setattr("counterpoint.diagnosis.rollouts.score_rows", lambda *_: SimpleNamespace(totals=totals))
    domain = SimpleNamespace(name="chat", train=[{"prompt": "a"}, {"prompt": "b"}])
    found = sample_rollouts(
        None, lambda text, **_: {"input_ids": [1]}, domain, prompts=2, samples=3, sampling=Sampling()
    )
    assert [(item.group, item.reward) for item in found.items] == [(0, 1.0), (0, 1.0), (1, 0.0), (1, 1.0)]
    assert [item.advantage for item in found.items[:2]] == [0.0, 0.0]
    assert found.items[2].advantage == -found.items[3].advantage < 0


def test_too_few_scored_prompts_are_refused(monkeypatch):
    few = Rollouts("math", (Rollout(0, (1,), (2,), 1.0, 0.0),))
    module = sys.modules["counterpoint.diagnosis.subject"]
    monkeypatch.setattr(module, "sample_rollouts", lambda *_, **__: few)
    monkeypatch.setattr(module, "_sampling", lambda *_: Sampling())
    config = SimpleNamespace(domains={"math": SimpleNamespace(training=SimpleNamespace(own={}))})
    subject = SimpleNamespace(domains={"math": None}, config=config, model=None, tokenizer=None)
    with pytest.raises(CounterpointError, match="completions of 1 prompt, and at least 2 are needed"):
        module.completions_for(subject, prompts=2, samples=1)


def test_halves_share_no_prompt():
    even, odd = rollouts().split()
    assert {item.group for item in even.items} == {0, 2}
    assert {item.group for item in odd.items} == {1}


def test_rollouts_survive_a_file(tmp_path):
    save_rollouts(tmp_path / "rollouts.jsonl", rollouts())
    assert read_rollouts(tmp_path / "rollouts.jsonl") == {"math": rollouts()}


def test_batches_mark_the_tokens_of_completions():
    batch = collate(rollouts().items, pad_id=0)
    item = rollouts().items[2]
    start = len(item.prompt_ids)
    assert batch.ids_BT[2, start : start + 1].tolist() == [8]
    assert batch.completion_BT.sum(1).tolist() == [len(i.completion_ids) for i in rollouts().items]
    assert batch.attention_BT.sum(1).tolist() == [len(i.completion_ids) + len(i.prompt_ids) for i in rollouts().items]


class Bigram(torch.nn.Module):
    """A language model that looks at the last token alone."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(10, 10, generator=generator, dtype=torch.float64))

    def forward(self, input_ids, attention_mask):
        class Output:
            logits = self.table[input_ids]

        return Output


def test_losses_against_sums_over_single_tokens():
    model, items = Bigram(), rollouts().items
    batch = collate(items, pad_id=0)
    policy, likelihood = 0.0, 0.0
    logs = model.table.log_softmax(-1)
    for item in items:
        tokens = [item.prompt_ids[-1], *item.completion_ids]
        steps = [logs[a, b] for a, b in itertools.pairwise(tokens)]
        policy = policy - item.advantage * len(steps)
        likelihood = likelihood - (sum(steps) if item.advantage > 0 else 0)
    assert policy_loss(model, batch).item() == pytest.approx(policy, rel=1e-6)
    assert likelihood_loss(model, batch).item() == pytest.approx(likelihood.item(), rel=1e-12)


def test_the_gradient_of_the_policy_loss_is_the_policy_gradient():
    model, items = Bigram(), rollouts().items
    policy_loss(model, collate(items, pad_id=0)).backward()
    found = model.table.grad.clone()
    model.table.grad = None
    logs = model.table.log_softmax(-1)
    total = sum(
        -item.advantage * logs[a, b]
        for item in items
        for a, b in itertools.pairwise([item.prompt_ids[-1], *item.completion_ids])
    )
    total.backward()
    torch.testing.assert_close(found, model.table.grad, rtol=1e-6, atol=1e-9)


def test_ratios_are_taken_to_the_old_policy():
    model, batch = Bigram(), collate(rollouts().items, pad_id=0)
    old_BT = log_probs(model, batch).detach() - 0.3
    assert policy_loss(model, batch, old_BT).item() == pytest.approx(policy_loss(model, batch).item() * math.exp(0.3))


def test_public_names_are_functions_also_after_their_files_were_imported():
    importlib.import_module("counterpoint.diagnosis.edits")
    importlib.import_module("counterpoint.diagnosis.routes")
    assert callable(diagnosis.edits)
    assert callable(diagnosis.routes)
    assert {"edits", "routes"} <= set(dir(diagnosis)) & set(diagnosis.__all__)

import pytest
import torch
from trl.trainer.utils import nanstd as nanstd_of_trl

from counterpoint.training.batches import EPSILON, nanstd, rescale_per_domain, total_rewards
from counterpoint.training.metrics import zero_advantage_share


def trl_batch_advantages(rewards, n):
    """Centred by group, divided by one standard deviation over everything, as TRL's documentation says."""
    centred = rewards - rewards.view(-1, n).mean(dim=1).repeat_interleave(n)
    return centred / (rewards.std() + EPSILON)


def test_a_wide_domain_no_longer_shrinks_a_narrow_one():
    torch.manual_seed(0)
    narrow = torch.randint(0, 2, (16,)).double()
    wide = torch.randn(16).double() * 50
    rewards = torch.cat([narrow, wide])
    domains = torch.tensor([0] * 16 + [1] * 16)

    before = trl_batch_advantages(rewards, 4)
    after = rescale_per_domain(before, rewards, domains, normalised_sum=False)

    assert before[:16].abs().max() < 0.1  # the negative control: TRL's own scale hides the narrow domain
    torch.testing.assert_close(after[:16], trl_batch_advantages(narrow, 4))
    torch.testing.assert_close(after[16:], trl_batch_advantages(wide, 4))


@pytest.mark.parametrize("normalised_sum", [False, True])
def test_one_domain_alone_keeps_trls_advantages(normalised_sum):
    torch.manual_seed(1)
    rewards = torch.rand(32).double()
    advantages = trl_batch_advantages(rewards, 4)
    if normalised_sum:
        advantages = (rewards - rewards.mean()) / (rewards.std() + EPSILON)
    after = rescale_per_domain(advantages, rewards, torch.zeros(32, dtype=torch.long), normalised_sum=normalised_sum)
    torch.testing.assert_close(after, advantages, rtol=1e-9, atol=1e-12)


def test_normalised_sum_has_mean_zero_and_spread_one_in_every_domain():
    torch.manual_seed(2)
    rewards = torch.cat([torch.rand(40), torch.rand(40) * 9 + 3]).double()
    domains = torch.tensor([0] * 40 + [1] * 40)
    advantages = (rewards - rewards.mean()) / (rewards.std() + EPSILON)
    after = rescale_per_domain(advantages, rewards, domains, normalised_sum=True)
    for d in (0, 1):
        assert after[domains == d].mean().abs() < 1e-9
        spread = rewards[domains == d].std()
        assert after[domains == d].std() == pytest.approx((spread / (spread + EPSILON)).item(), abs=1e-9)


def test_unscored_rows_get_no_advantage():
    rewards = torch.tensor([0.0, 1.0, torch.nan, 1.0])
    after = rescale_per_domain(torch.ones(4), rewards, torch.zeros(4, dtype=torch.long), normalised_sum=False)
    assert after[2] == 0
    assert (after[[0, 1, 3]] != 0).all()


def test_total_rewards_weighs_functions_and_keeps_unscored_rows_nan():
    rewards = torch.tensor([[1.0, torch.nan], [0.5, 2.0], [torch.nan, torch.nan]])
    total = total_rewards(rewards, torch.tensor([1.0, 0.5]))
    assert total[:2].tolist() == [1.0, 1.5]
    assert total[2].isnan()


def test_nanstd_ignores_nan_and_is_zero_for_one_value():
    assert nanstd(torch.tensor([1.0, torch.nan, 3.0])).item() == pytest.approx(2**0.5)
    assert nanstd(torch.tensor([1.0, torch.nan])).item() == 0


def test_zero_advantage_leaves_out_completions_without_a_reward_as_trl_does():
    nan = torch.nan
    rewards = torch.tensor([1.0, 1.0, nan, 1.0, 0.0, nan, nan, nan, nan, 0.5, nan, nan])
    assert zero_advantage_share(rewards, 3) == pytest.approx(1 / 4)
    trl = nanstd_of_trl(rewards.view(-1, 3), dim=1)
    assert torch.isclose(trl, torch.zeros(4)).float().mean().item() == pytest.approx(1 / 4)


def test_zero_advantage_share_counts_prompts_whose_completions_score_alike():
    assert zero_advantage_share(torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0]), 2) == pytest.approx(2 / 3)

"""Factors from the lengths of the domains' gradients: surgery sees the balanced gradients and nothing else."""

import pytest
import torch
from torch import nn

from counterpoint.surgery import STRATEGIES, Surgeon, contributions, group_parameters


def planted(seed=0):
    torch.manual_seed(seed)
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(3))}).double()
    gradients = {
        name: [{key: scale * torch.randn_like(param) for key, param in model.named_parameters()} for _ in range(2)]
        for name, scale in (("code", 0.1), ("math", 1.0), ("qa", 5.0))
    }
    return model, gradients


def combined(model, gradients, strategy, factors=None, balance=None):
    surgeon = Surgeon(model, strategy)
    for name, parts in gradients.items():
        for part in parts:
            for key, param in model.named_parameters():
                param.grad = part[key] * (factors[name] if factors else 1.0)
            surgeon.collect(name)
    record = surgeon.combine(balance)
    return record, torch.cat([param.grad.flatten() for param in model.parameters()])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_factors_do_what_multiplied_gradients_do(strategy):
    if STRATEGIES[strategy].weighting in ("static",):
        pytest.skip("needs weights of its own")
    model, gradients = planted()
    seen = {}

    def balance(lengths):
        seen.update(lengths)
        return {name: 1 / length for name, length in lengths.items()}

    record, update = combined(model, gradients, strategy, balance=balance)
    for name, parts in gradients.items():
        whole = torch.cat([sum(part[key] for part in parts).flatten() for key in parts[0]])
        assert seen[name] == pytest.approx(whole.norm().item())
    factors = {name: 1 / length for name, length in seen.items()}
    wanted, by_hand = combined(model, gradients, strategy, factors)
    assert torch.allclose(update, by_hand, rtol=1e-10, atol=1e-12)
    assert torch.allclose(record.gram_GDD, wanted.gram_GDD)
    assert torch.allclose(record.weights_GD, wanted.weights_GD)
    assert record.gram_GDD.sum(dim=0).diagonal().tolist() == pytest.approx([1, 1, 1])


def test_a_gradient_that_is_not_finite_is_not_balanced():
    model, gradients = planted()
    next(iter(gradients["qa"][0].values())).fill_(torch.nan)
    record, _ = combined(model, gradients, "mgs", balance=lambda lengths: pytest.fail("asked"))
    assert not record.finite


def test_contributions_are_each_domains_part_in_the_update():
    model, gradients = planted()
    record, update = combined(model, gradients, "mgs")
    parts = contributions(record.gram_GDD, record.weights_GD)
    assert parts.sum().item() == pytest.approx(1)
    # brute force: what is left of the update's squared norm along each weighted gradient
    groups = {key: record.groups.index(group) for key, (group,) in group_parameters(model, "module").items()}
    for place, name in enumerate(record.domains):
        own = torch.cat(
            [
                (record.weights_GD[groups[key], place] * sum(part[key] for part in gradients[name])).flatten()
                for key, _ in model.named_parameters()
            ]
        )
        assert parts[place].item() == pytest.approx((own @ update / update.square().sum()).item())


def test_no_update_has_no_parts():
    assert contributions(torch.zeros(1, 2, 2), torch.ones(1, 2)).isnan().all()

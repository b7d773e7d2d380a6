"""The rules of balance on planted numbers, and their names and options in a configuration."""

import math

import pytest

from counterpoint.balance import (
    BALANCES,
    COUNTS_BY,
    DEFAULT_LOSS,
    Part,
    build_balance,
    effective_weights,
    expected_weights,
    out_of_balance,
    prompt_shares,
)
from counterpoint.config import load_config, parse_config
from counterpoint.errors import ConfigError


def part(completions, tokens, signal_completions=None, signal_tokens=None):
    taught = completions if signal_completions is None else signal_completions
    tokens_taught = tokens if signal_tokens is None else signal_tokens
    scored = completions if tokens else 0
    return Part(completions, scored, scored, tokens, taught, taught if tokens else 0, tokens_taught)


STEP = {"math": part(8, 80), "chat": part(24, 720, 12, 240)}
"""math has 1 of 4 prompts and 1 of 10 tokens; half of the prompts of chat teach, with a third of its tokens."""

ALIKE = {"math": part(8, 80), "chat": part(8, 80)}


def weights(name, step, loss_type="dapo"):
    return effective_weights(step, loss_type, build_balance(name).factors(step, loss_type))


@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "vespo", "dr_grpo", "luspo"])
def test_losses_that_sum_over_tokens_weigh_a_domain_by_its_tokens(loss_type):
    assert weights("none", STEP, loss_type) == pytest.approx({"math": 0.1, "chat": 0.9})


@pytest.mark.parametrize("loss_type", ["grpo", "sapo"])
def test_losses_that_average_each_completion_weigh_a_domain_by_its_completions(loss_type):
    assert weights("none", STEP, loss_type) == pytest.approx({"math": 0.25, "chat": 0.75})


@pytest.mark.parametrize("name", ["tokens", "prompts", "worst"])
@pytest.mark.parametrize("loss_type", COUNTS_BY)
def test_balanced_weights_are_the_shares_of_prompts(name, loss_type):
    assert weights(name, STEP, loss_type) == pytest.approx(prompt_shares(STEP))


def test_signal_weighs_what_teaches_by_the_shares_of_prompts():
    factors = build_balance("signal").factors(STEP, "dapo")
    taught = {"math": factors["math"] * 80, "chat": factors["chat"] * 240}
    assert taught["math"] / taught["chat"] == pytest.approx(1 / 3)
    assert sum(taught.values()) == pytest.approx(320)


def test_missing_signal_multiplies_a_loss_by_no_more_than_is_allowed():
    step = {"math": part(8, 80, 4, 8), "chat": part(8, 80)}
    plain = build_balance("tokens").factors(step, "dapo")
    ratio = plain["math"] / plain["chat"]
    for most in (1.0, 3.0, 5.0, 100.0):
        factors = build_balance({"name": "signal", "options": {"most": most}}).factors(step, "dapo")
        assert factors["math"] / factors["chat"] == pytest.approx(ratio * min(most, 10))


def test_a_domain_that_teaches_nothing_is_left_alone_and_the_others_share():
    step = {"math": part(8, 80, 0, 0), "chat": part(8, 40), "qa": part(8, 120)}
    factors = build_balance("signal").factors(step, "dapo")
    assert factors["math"] == 1
    assert factors["chat"] * 40 == pytest.approx(factors["qa"] * 120) == pytest.approx(80)


def test_norm_gives_gradients_the_same_length_and_keeps_their_sum():
    norm = build_balance("norm")
    lengths = {"math": 1.0, "chat": 3.0}
    factors = norm.gradient_factors(ALIKE, lengths)
    assert {name: factors[name] * lengths[name] for name in lengths} == pytest.approx({"math": 2.0, "chat": 2.0})
    by_share = norm.gradient_factors(STEP, lengths)
    assert by_share["chat"] * 3.0 / by_share["math"] == pytest.approx(3.0)


def test_norm_does_not_blow_up_a_gradient_that_is_all_noise():
    factors = build_balance("norm").gradient_factors(ALIKE, {"math": 1e-9, "chat": 1.0})
    assert factors == pytest.approx({"math": 10.0, "chat": 0.5})
    assert build_balance("norm").gradient_factors(ALIKE, {"math": 0.0, "chat": 1.0}) == {"math": 1.0, "chat": 1.0}


@pytest.mark.parametrize("name", BALANCES)
def test_nothing_changes_where_nothing_is_out_of_balance_and_in_a_domain_alone(name):
    balance = build_balance(name)
    for step in (ALIKE, {"math": part(8, 80, 4, 30)}, {"math": part(8, 80), "chat": part(8, 0, 0, 0)}):
        assert set(balance.factors(step, "dapo").values()) == {1.0}
    assert balance.gradient_factors(ALIKE, {"math": 2.0, "chat": 2.0}) == {"math": 1.0, "chat": 1.0}
    assert balance.gradient_factors({"math": part(8, 80)}, {"math": 2.0}) == {"math": 1.0}


@pytest.mark.parametrize("name", BALANCES)
def test_factors_keep_the_weighted_sum(name):
    if name == "signal":  # of what teaches, see above
        return
    for loss_type in COUNTS_BY:
        factors = build_balance(name).factors(STEP, loss_type)
        amounts = {domain: one.amount(loss_type) for domain, one in STEP.items()}
        assert sum(factors[domain] * amounts[domain] for domain in STEP) == pytest.approx(sum(amounts.values()))


def test_weights_are_expected_from_lengths_and_shares():
    shares, lengths = {"math": 0.5, "chat": 0.5}, {"math": 120.0, "chat": 800.0}
    weights = expected_weights("dapo", shares, lengths)
    assert weights == pytest.approx({"math": 120 / 920, "chat": 800 / 920})
    assert expected_weights("grpo", shares, lengths) == shares
    assert "math has 50% of the prompts and 13% of the loss" in out_of_balance(weights, shares, "dapo")
    assert "chat" not in out_of_balance(weights, shares, "dapo")  # less than twice its share
    assert out_of_balance({"math": 0.26, "chat": 0.74}, shares, "dapo") is None


def test_the_default_is_trls():
    trl = pytest.importorskip("trl")
    assert trl.GRPOConfig.__dataclass_fields__["loss_type"].default == DEFAULT_LOSS


# MT-GRPO's rule


def reference(rewards, shares, learning_rate=0.025, weight=0.2, clip=0.1, decay=1e-5):
    """The weights of every generation by torch's AdamW and autograd."""
    torch = pytest.importorskip("torch")
    names = list(shares)
    start = torch.tensor([shares[name] / sum(shares.values()) for name in names], dtype=torch.float64).log()
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([logits], lr=learning_rate, weight_decay=decay)
    found, before = [], None
    for means in rewards:
        found.append(torch.softmax(logits.detach(), 0).tolist())
        now = torch.tensor([means[name] for name in names], dtype=torch.float64)
        gain = torch.zeros_like(now) if before is None else now - before
        optimizer.zero_grad()
        (torch.softmax(logits, 0) * (gain.clamp(-clip, clip) + weight * now)).sum().backward()
        optimizer.step()
        before = now
    return found


REWARDS = [{"math": 0.1 + 0.02 * i, "chat": 0.8 - 0.3 * (i == 5)} for i in range(40)]


def test_worst_follows_the_rule_of_mt_grpo():
    worst, found = build_balance("worst"), []
    for means in REWARDS:
        worst.see(means, {"math": 1.0, "chat": 3.0})
        found.append(weights_in_use(worst))
    for mine, theirs in zip(found, reference(REWARDS, {"math": 1.0, "chat": 3.0}), strict=True):
        assert list(mine.values()) == pytest.approx(theirs, rel=1e-9)
    assert found[0] == pytest.approx({"math": 0.25, "chat": 0.75})
    assert found[-1]["math"] > 0.4  # the worse domain


def weights_in_use(worst):
    return effective_weights(ALIKE, "dapo", worst.factors(ALIKE, "dapo"))


def test_worst_goes_on_from_its_state_and_starts_anew_without():
    whole, first = build_balance("worst"), build_balance("worst")
    for means in REWARDS[:7]:
        whole.see(means, {"math": 1.0, "chat": 1.0})
        first.see(means, {"math": 1.0, "chat": 1.0})
    resumed = build_balance("worst")
    resumed.load_state_dict(first.state_dict())
    assert weights_in_use(resumed) == weights_in_use(whole)
    for means in REWARDS[7:]:
        whole.see(means, {"math": 1.0, "chat": 1.0})
        resumed.see(means, {"math": 1.0, "chat": 1.0})
        assert weights_in_use(resumed) == weights_in_use(whole)
    whole.load_state_dict({})
    assert weights_in_use(whole) == {"math": 0.5, "chat": 0.5}


def test_worst_waits_for_every_domain_and_takes_a_missing_reward_for_the_last():
    worst = build_balance("worst")
    for means in ({"math": 0.1}, {"math": 0.9, "chat": math.nan}):
        worst.see(means, {"math": 1.0, "chat": 1.0})
    assert worst.state_dict()["updates"] == 0
    worst.see({"chat": 0.5}, {"math": 1.0, "chat": 1.0})
    assert worst.state_dict()["rewards"] == {"math": 0.9, "chat": 0.5}
    assert worst.state_dict()["updates"] == 1


# Configurations

SETTINGS = {"domains": {"math": {"source": {"type": "pocket"}, "reward": "math"}}}


def test_a_configuration_names_the_rule_or_spells_it_out():
    assert parse_config(SETTINGS).balance.spec == "none"
    assert parse_config(SETTINGS | {"balance": "tokens"}).balance.spec == "tokens"
    long = {"name": "worst", "options": {"learning_rate": 0.05}}
    assert parse_config(SETTINGS | {"balance": long}).balance.spec == long


@pytest.mark.parametrize(
    ("file", "balance", "name"),
    [
        ("pocket.yaml", "none", "pocket-mgs"),
        ("pocket-mgs.yaml", "tokens", "pocket-mgs-tokens"),
        ("pocket-mgs-tokens.yaml", "tokens", "pocket-mgs-tokens"),
        ("pocket.yaml", "{name: worst, options: {clip: 0.2}}", "pocket-mgs-worst-clip-0.2"),
    ],
)
def test_a_run_is_named_by_its_balance_too(file, balance, name, tmp_path):
    text = f"balance: {balance}\ndomains: {{math: {{source: pocket}}}}\n"
    (tmp_path / file).write_text(text)
    assert load_config(tmp_path / file).run.name == name


@pytest.mark.parametrize(
    ("balance", "key"),
    [
        ("token", "balance.name"),
        ({"name": "worst", "options": {"rate": 1}}, "balance.options.rate"),
        ({"name": "worst", "options": {"clip": 0}}, "balance.options.clip"),
        ({"name": "tokens", "options": {"most": 2.0}}, "balance.options.most"),
        ({"name": "norm", "most": 2.0}, "balance.most"),
        (3, "balance"),
    ],
)
def test_what_no_rule_takes_is_refused_by_its_key(balance, key):
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        parse_config(SETTINGS | {"balance": balance})
    if balance != 3:
        with pytest.raises(ConfigError, match="balance="):
            build_balance(balance)

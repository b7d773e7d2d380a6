"""What the trainer does of a balance: every mode against a brute force of its own in float64."""

import json
import random
from collections import Counter
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM

from counterpoint.balance import BALANCES, COUNTS_BY
from counterpoint.domains.sampler import SOURCE_COLUMN, MixedRows
from counterpoint.errors import ConfigError, RunError, UnsupportedError
from counterpoint.training import DomainGRPOTrainer
from counterpoint.training.backends import PROVEN
from counterpoint.training.batches import DOMAIN_KEY, PROMPT_KEY, SIGNAL_KEY, DomainRows
from counterpoint.training.redrawing import Redraws
from counterpoint.training.weighing import Weighing
from trainer_helpers import grpo_args, relative_error, taped

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

DATA = {
    "math": [{"prompt": f"{i}+{i}="} for i in range(6)],
    "code": [{"prompt": f"up({c})="} for c in "abcdef"],
}
SHARES = {"math": 1, "code": 3}
LENGTHS = {"math": (1, 2), "code": (3, 8)}
DULL = "bdf"
"""Prompts of ``code`` whose completions all get the same reward."""


def spread(prompts, completion_ids, **_):
    """A reward that differs from completion to completion, but for the dull prompts."""
    return [0.5 if prompt[3] in DULL else sum(ids) / 500 for prompt, ids in zip(prompts, completion_ids, strict=True)]


class Planted(DomainGRPOTrainer):
    """Completions whose lengths and tokens follow from the prompt; keeps what every step was trained on."""

    lengths = LENGTHS

    def _generate_single_turn(self, prompt_ids, *_, **__):
        found = []
        for place, ids in enumerate(prompt_ids):
            text = self.processing_class.decode(ids)
            draw = random.Random(f"{text} {place % self.num_generations} {self.state.global_step}")
            low, high = self.lengths["code" if "up" in text else "math"]
            found.append([draw.randint(5, 60) for _ in range(draw.randint(low, high))])
        return found, None

    def _prepare_inputs(self, generation_batch):
        inputs = super()._prepare_inputs(generation_batch)
        self.__dict__.setdefault("seen", []).append(self._buffered_inputs[self._slot])
        return inputs


@pytest.fixture(scope="module")
def double_model(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("double")
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).save_pretrained(folder)
    return folder


def train(model, tokenizer, folder, balance, strategy="mixed", data=DATA, cls=Planted, **settings):
    shares = {name: SHARES[name] for name in data}
    settings = {"max_steps": 1, "gradient_accumulation_steps": 8} | settings
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    args = grpo_args(folder, strategy=strategy, balance=balance, shares=shares, **settings)
    return taped(cls, policy, spread, args, data, tokenizer=tokenizer)


# Brute force


def rows_of(micro_batches):
    """Domain, prompt, signal, advantage, tokens of prompt and completion of every completion of a step."""
    rows = []
    for part in micro_batches:
        for i in range(len(part["advantages"])):
            prompt = part["prompt_ids"][i][part["prompt_mask"][i].bool()]
            answer = part["completion_ids"][i][part["completion_mask"][i].bool()]
            name = tuple(DATA)[part[DOMAIN_KEY][i]]
            key = (name, int(part[PROMPT_KEY][i]))
            rows.append((name, key, bool(part[SIGNAL_KEY][i]), part["advantages"][i].double(), prompt, answer))
    return rows


def coefficients(rows, mode, loss_type):
    """What each token of each row is multiplied by in the loss, from the definitions."""
    by_tokens = COUNTS_BY[loss_type] == "tokens"
    amounts = [len(row[5]) if by_tokens else 1 for row in rows]
    constant = {"dapo": 1 / sum(amounts), "grpo": 1 / len(rows), "dr_grpo": 1 / (len(rows) * 8)}[loss_type]
    total = Counter()
    for row, amount in zip(rows, amounts, strict=True):
        total[row[0]] += amount
        total[row[1]] += amount
        total["all"] += amount
        total[row[0], "signal"] += amount * row[2]
        total["signal"] += amount * row[2]
    prompts = Counter(row[0] for row in {row[1]: row for row in rows}.values())
    share = {name: prompts[name] / prompts.total() for name in prompts}
    found = []
    for name, prompt, *_, answer in rows:
        weight = {
            "none": 1.0,
            "norm": 1.0,
            "tokens": share[name] * total["all"] / total[name],
            "worst": share[name] * total["all"] / total[name],
            "prompts": total["all"] / prompts.total() / total[prompt],
            "signal": share[name] * total["signal"] / max(total[name, "signal"], total[name] / 5),
        }[mode]
        found.append(weight * constant / (1 if by_tokens else len(answer)))
    return found


def gradients_by_hand(model, rows, scales):
    """The gradient of each domain: of ``-advantage * scale * sum of log-probabilities``, row by row."""
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    found = {}
    for (name, _, _, advantage, prompt, answer), scale in zip(rows, scales, strict=True):
        net.zero_grad()
        logits = net(torch.cat([prompt, answer]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
        logps = torch.log_softmax(logits, dim=-1).gather(1, answer.unsqueeze(1))
        (-advantage * scale * logps.sum()).backward()
        own = found.setdefault(name, {key: torch.zeros_like(param) for key, param in net.named_parameters()})
        for key, param in net.named_parameters():
            own[key] += param.grad
    return found


def length(gradient):
    return torch.stack([part.norm() for part in gradient.values()]).norm()


MODES = [(mode, "dapo") for mode in BALANCES] + [
    (mode, loss_type) for mode in ("tokens", "prompts", "signal") for loss_type in ("grpo", "dr_grpo")
]


@pytest.mark.parametrize(("mode", "loss_type"), MODES)
def test_every_mode_gives_the_gradient_of_its_definition(mode, loss_type, double_model, tiny_tokenizer, tmp_path):
    strategy = "mixed" if mode == "norm" else "mgs"
    trainer, (update,) = train(double_model, tiny_tokenizer, tmp_path, mode, strategy, loss_type=loss_type)
    rows = rows_of(trainer.seen)
    assert len({len(row[5]) for row in rows}) > 4
    assert {row[2] for row in rows if row[0] == "code"} == {True, False}
    by_hand = gradients_by_hand(double_model, rows, coefficients(rows, mode, loss_type))
    if mode == "norm":
        lengths = {name: length(own) for name, own in by_hand.items()}
        share = {"math": 0.25, "code": 0.75}
        for name, own in by_hand.items():
            for part in own.values():
                part *= share[name] * sum(lengths.values()) / lengths[name]
    # surgery sees the balanced gradients
    gram_DD = trainer.last_record.gram_GDD.sum(dim=0)
    for i, name in enumerate(trainer.last_record.domains):
        assert gram_DD[i, i].sqrt().item() == pytest.approx(length(by_hand[name]).item(), rel=1e-6)
    if strategy == "mixed":
        assert relative_error(update, {key: sum(own[key] for own in by_hand.values()) for key in update}) < 1e-6


@pytest.mark.parametrize("mode", BALANCES)
def test_one_domain_alone_is_trl(mode, double_model, tiny_tokenizer, tmp_path):
    data = {"code": DATA["code"]}
    settings = {"data": data, "gradient_accumulation_steps": 2, "max_steps": 2}
    weights = [{"step": 1, "weights": {"code": 7}}]
    _, plain = train(double_model, tiny_tokenizer, tmp_path / "a", "none", **settings)
    _, found = train(double_model, tiny_tokenizer, tmp_path / "b", mode, "mgs", **settings, schedule=weights)
    for mine, theirs in zip(found, plain, strict=True):
        assert relative_error(mine, theirs) == 0


class Even(Planted):
    lengths: ClassVar = {"math": (4, 4), "code": (4, 4)}


@pytest.mark.parametrize("mode", ["tokens", "prompts", "signal", "worst"])
def test_nothing_changes_where_lengths_are_even_and_every_prompt_teaches(
    mode, double_model, tiny_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setitem(globals(), "DULL", "")
    _, (plain,) = train(double_model, tiny_tokenizer, tmp_path / "a", "none", cls=Even)
    trainer, (found,) = train(double_model, tiny_tokenizer, tmp_path / "b", mode, cls=Even)
    assert relative_error(found, plain) < 1e-12
    line = trainer.state.log_history[0]
    for key in ("share_prompts", "share_tokens", "share_signal", "effective_weight"):
        assert line[f"{key}/math"] == pytest.approx(0.25)


@pytest.mark.parametrize("mode", ["none", "prompts", "signal", "norm", "worst"])
def test_weights_scale_the_gradients_of_domains_and_keep_their_sum(mode, double_model, tiny_tokenizer, tmp_path):
    weights = {"math": 3.0, "code": 0.5}
    schedule = [{"step": 0, "weights": weights}]
    trainer, (update,) = train(double_model, tiny_tokenizer, tmp_path, mode, schedule=schedule)
    rows = rows_of(trainer.seen)
    scales = coefficients(rows, mode, "dapo")
    by_hand = gradients_by_hand(double_model, rows, scales)
    if mode == "norm":
        amounts = dict(SHARES)
        factors = {name: amounts[name] / sum(amounts.values()) / length(own).item() for name, own in by_hand.items()}
        kept = sum(length(own).item() for own in by_hand.values())
    else:
        amounts = Counter()
        for row, scale in zip(rows, scales, strict=True):
            amounts[row[0]] += scale * len(row[5])
        factors, kept = dict.fromkeys(by_hand, 1.0), 1.0
    whole = sum(weights[name] * amount for name, amount in amounts.items()) / sum(amounts.values())
    changed = {name: kept * factors[name] * weights[name] / whole for name in by_hand}
    expected = {key: sum(changed[name] * own[key] for name, own in by_hand.items()) for key in update}
    assert relative_error(update, expected) < 1e-6
    plain = {key: sum(own[key] for own in by_hand.values()) for key in update}
    assert relative_error(update, plain) > 0.1
    if mode != "norm":
        found = trainer.state.log_history[0]["effective_weight/math"]
        assert found == pytest.approx(3 * amounts["math"] / (3 * amounts["math"] + 0.5 * amounts["code"]))


def test_the_metrics_are_those_of_planted_counts(double_model, tiny_tokenizer, tmp_path):
    trainer, _ = train(double_model, tiny_tokenizer, tmp_path, "none", "mgs")
    rows, line = rows_of(trainer.seen), trainer.state.log_history[0]

    def share(amount):
        own = Counter()
        for row in rows:
            own[row[0]] += amount(row)
        return own["math"] / own.total()

    planted = {
        "share_prompts": 0.25,
        "share_tokens": share(lambda row: len(row[5])),
        "effective_weight": share(lambda row: len(row[5])),
        "share_signal": share(lambda row: row[2]),
    }
    assert planted["share_tokens"] < 0.15 < 0.25 < planted["share_signal"] < 1
    for key, value in planted.items():
        assert line[f"{key}/math"] == pytest.approx(value)
        assert line[f"{key}/code"] == pytest.approx(1 - value)
    by_hand = gradients_by_hand(double_model, rows, coefficients(rows, "none", "dapo"))
    squares = {name: length(own).item() ** 2 for name, own in by_hand.items()}
    assert line["share_gradient/math"] == pytest.approx(squares["math"] / sum(squares.values()), rel=1e-5)
    assert line["share_update/math"] + line["share_update/code"] == pytest.approx(1)


def test_every_step_of_a_generation_is_counted_on_its_own(double_model, tiny_tokenizer, tmp_path):
    """Two steps of one generation, each used twice, with ``loss_type="dapo"`` that divides by the mean of both."""
    settings = {"steps_per_generation": 16, "num_iterations": 2, "max_steps": 4}
    trainer, _ = train(double_model, tiny_tokenizer, tmp_path, "tokens", **settings)
    tokens = []
    for step in range(4):
        rows = rows_of(trainer.seen[8 * step : 8 * step + 8])
        own = sum(len(row[5]) for row in rows if row[0] == "math")
        tokens.append(own / sum(len(row[5]) for row in rows))
    assert tokens[:2] == tokens[2:]
    assert tokens[0] != tokens[1]
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["share_tokens/math"] for line in lines] == pytest.approx(tokens)
    assert [line["effective_weight/math"] for line in lines] == pytest.approx([0.25] * 4)


def test_worst_goes_on_from_a_checkpoint_in_the_middle_of_a_generation(double_model, tiny_tokenizer, tmp_path):
    settings = {"steps_per_generation": 16, "save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    settings["balance"] = {"name": "worst", "options": {"learning_rate": 0.5}}
    whole, reference = train(double_model, tiny_tokenizer, tmp_path, strategy="mgs", **settings)
    weights = [line["effective_weight/math"] for line in whole.state.log_history if "loss" in line]
    assert len(set(weights)) >= 3

    class Resumed(Planted):
        def train(self):
            return super().train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))

    resumed, steps = train(double_model, tiny_tokenizer, tmp_path, strategy="mgs", cls=Resumed, **settings)
    assert resumed.state.log_history[-2]["effective_weight/math"] == weights[-1]
    for mine, theirs in zip(steps, reference[3:], strict=True):
        assert relative_error(mine, theirs) == 0
    kept = json.loads((tmp_path / "checkpoint-3" / "counterpoint_state.json").read_text())
    assert set(kept["balance"]["weights"]) == set(DATA)
    with pytest.raises(RunError, match="balance was"):
        train(double_model, tiny_tokenizer, tmp_path, strategy="mgs", cls=Resumed, **(settings | {"balance": "none"}))


def test_adapters_are_balanced_too(double_model, tiny_tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)

    class Adapted(Planted):
        def __init__(self, *args, **kwargs):
            torch.manual_seed(0)
            super().__init__(*args, peft_config=config, **kwargs)

    trainer, _ = train(double_model, tiny_tokenizer, tmp_path, "norm", "mgs", cls=Adapted)
    line = trainer.state.log_history[0]
    assert line["grad_norm/code"] == pytest.approx(3 * line["grad_norm/math"], rel=1e-5)


# Refusals


@pytest.mark.parametrize(
    ("balance", "settings", "name"),
    [
        ("tokens", {"steps_per_generation": 4}, "steps_per_generation"),
        ("worst", {"entropy_coef": 0.01}, "entropy_coef"),
        ("signal", {"router_aux_loss_coef": 0.01}, "router_aux_loss_coef"),
        ("prompts", {"beta": 0.1}, "beta"),
    ],
)
@pytest.mark.filterwarnings("ignore:entropy_coef")
def test_what_would_not_be_exact_is_refused(balance, settings, name, tmp_path):
    args = grpo_args(tmp_path, gradient_accumulation_steps=8, **settings)
    with pytest.raises(UnsupportedError, match=name):
        Weighing(balance, args, DATA)
    assert Weighing("norm", args, DATA).rule.uses_gradients
    if balance != "prompts":  # weights multiply whole losses, too
        with pytest.raises(UnsupportedError, match=name):
            Weighing("none", args, DATA).check_weights()
    Weighing("norm", args, DATA).check_weights()


def test_an_unknown_rule_is_refused_with_the_settings(tmp_path):
    with pytest.raises(ConfigError, match="tokens"):
        grpo_args(tmp_path, balance="token")


def test_every_loss_type_that_is_allowed_says_what_it_counts_by():
    assert set(COUNTS_BY) == set(PROVEN["loss_type"])


# Counting


class OneRank:
    @staticmethod
    def reduce(tensor, reduction):
        return tensor


def micro_batch(domain, prompts, lengths, signal, tool_lengths=None):
    size = max(lengths)
    mask = torch.tensor([[1] * n + [0] * (size - n) for n in lengths])
    rows = {
        "completion_mask": mask,
        "advantages": torch.ones(len(lengths)),
        DOMAIN_KEY: torch.full((len(lengths),), domain),
        PROMPT_KEY: torch.tensor(prompts),
        SIGNAL_KEY: torch.tensor(signal),
    }
    if tool_lengths:
        rows["tool_mask"] = torch.tensor([[1] * n + [0] * (size - n) for n in tool_lengths])
    return rows


def test_masked_completions_and_the_tokens_of_tools_count_for_nothing(tmp_path):
    args = grpo_args(tmp_path, gradient_accumulation_steps=2)
    weighing = Weighing("prompts", args, DATA)
    buffer = [
        micro_batch(0, [4, 4, 7, 7], [3, 1, 0, 0], [True, True, False, False]),
        micro_batch(1, [2, 2, 9, 9], [8, 8, 4, 4], [True] * 4, tool_lengths=[2, 4, 4, 2]),
    ]
    ready = weighing.begin(buffer, 0, OneRank)
    assert weighing.step["math"].__dict__ == {
        "completions": 4, "live": 2, "scored": 2, "tokens": 4,
        "signal_completions": 2, "signal_scored": 2, "signal_tokens": 4,
    }  # fmt: skip
    assert weighing.step["code"].tokens == 12
    assert weighing.step["code"].live == 4
    # 16 tokens and 3 prompts: each prompt counts as 16/3 tokens
    factor = weighing.factors["math"]
    assert (factor * ready["advantages"][:2] * 4).tolist() == pytest.approx([16 / 3] * 2)
    assert weighing.begin(buffer, 1, OneRank)["advantages"].tolist() == [1.0] * 4  # both have six
    assert weighing.end()["effective_weight/math"] == pytest.approx(1 / 3)


# Dynamic sampling


def test_silent_prompts_are_replaced_inside_their_domain(double_model, tiny_tokenizer, tmp_path):
    plain, _ = train(double_model, tiny_tokenizer, tmp_path / "a", "none")
    trainer, (update,) = train(double_model, tiny_tokenizer, tmp_path / "b", "none", dynamic_sampling=8)
    before, rows = rows_of(plain.seen), rows_of(trainer.seen)
    silent = {row[1] for row in before if not row[2]}
    assert silent
    assert all(row[2] for row in rows)
    assert Counter(row[0] for row in rows) == Counter(row[0] for row in before)
    for old, new in zip(before, rows, strict=True):
        if old[2]:  # what teaches stays
            assert new[4].tolist() == old[4].tolist()
            assert new[5].tolist() == old[5].tolist()
    by_hand = gradients_by_hand(double_model, rows, coefficients(rows, "none", "dapo"))
    assert relative_error(update, {key: sum(own[key] for own in by_hand.values()) for key in update}) < 1e-6
    line, first = trainer.state.log_history[0], plain.state.log_history[0]
    assert line["replaced/code"] == pytest.approx(len(silent) / 6)
    assert line["replaced/math"] == 0
    assert line["extra_completions"] >= len(silent) / 8
    assert line["share_signal/code"] == pytest.approx(0.75)
    for key in ("reward", "reward/code", "zero_advantage/code", "completions/mean_length", "frac_reward_zero_std"):
        assert line[key] == first[key], key  # of the prompts first drawn, so that they stay comparable


def test_rounds_are_bounded_where_nothing_teaches(double_model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "DULL", "abcdef")
    _, (plain,) = train(double_model, tiny_tokenizer, tmp_path / "a", "none")
    trainer, (update,) = train(double_model, tiny_tokenizer, tmp_path / "b", "none", dynamic_sampling=3)
    assert trainer.state.log_history[0]["extra_completions"] == pytest.approx(3 * 0.75)
    assert relative_error(update, plain) == 0


def test_dynamic_sampling_goes_on_from_a_checkpoint(double_model, tiny_tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "dynamic_sampling": 2}
    whole, reference = train(double_model, tiny_tokenizer, tmp_path, "none", **settings)

    class Resumed(Planted):
        def train(self):
            return super().train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))

    _, steps = train(double_model, tiny_tokenizer, tmp_path, "none", cls=Resumed, **settings)
    assert sum(line.get("replaced/code", 0) for line in whole.state.log_history[2:]) > 0
    for mine, theirs in zip(steps, reference[2:], strict=True):
        assert relative_error(mine, theirs) == 0
    with pytest.raises(RunError, match="dynamic_sampling was"):
        train(double_model, tiny_tokenizer, tmp_path, "none", cls=Resumed, **(settings | {"dynamic_sampling": 0}))


class ManyRanks:
    """The second of two; the other one wants two prompts of every kind."""

    device = torch.device("cpu")
    process_index = 1

    @staticmethod
    def gather(count_K):
        return torch.cat([torch.full_like(count_K, 2), count_K])


def test_ranks_draw_different_rows_of_the_same_source(tmp_path):
    rows = [{"prompt": str(i), SOURCE_COLUMN: "easy" if i < 8 else "hard"} for i in range(20)]
    data = DomainRows({"math": MixedRows(rows, {"easy": 1, "hard": 1}), "code": DATA["code"]})
    redraws = Redraws(1, grpo_args(tmp_path), data)
    chosen, most = redraws._draw([("math", 3), ("code", 0), ("math", 12), ("math", 13)], ManyRanks)
    assert most == 6  # what the other rank wants
    assert [name for name, _ in chosen] == ["math", "code", "math", "math"]
    assert chosen[0][1] < 8 <= min(chosen[2][1], chosen[3][1])
    assert redraws.drawn == {"math\neasy": 3, "math\nhard": 4, "code": 3}
    drawn = [row for _ in range(4) for _, row in redraws._draw([("math", 15)] * 2, ManyRanks)[0]]
    assert len(set(drawn)) > 4


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"scale_rewards": "batch"}, "scale_rewards"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation"),
        ({"per_device_train_batch_size": 2, "steps_per_generation": 1, "num_generations": 4}, "num_generations"),
    ],
)
def test_dynamic_sampling_that_would_not_be_exact_is_refused(settings, name, tmp_path):
    args = grpo_args(tmp_path)
    vars(args).update(settings)
    with pytest.raises(UnsupportedError, match=name):
        Redraws(1, args, DomainRows(DATA))
    assert Redraws(0, args, DomainRows(DATA)).rounds == 0
    with pytest.raises(ConfigError, match="dynamic_sampling"):
        grpo_args(tmp_path, dynamic_sampling=-1)


def test_dynamic_sampling_refuses_images(tmp_path):
    with pytest.raises(UnsupportedError, match="images"):
        Redraws(1, grpo_args(tmp_path), DomainRows({"math": [{"prompt": "a", "image": None}]}))

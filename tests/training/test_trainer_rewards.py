"""Rewards of a domain: everything that ``GRPOTrainer`` takes for one, on one rank and on two."""

import os
import warnings

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from counterpoint.domains.domain_rewards import DOMAIN_COLUMN
from counterpoint.errors import RewardError
from counterpoint.pocket.tokenizer import new_tokenizer
from counterpoint.rewards import FAILED
from counterpoint.training import DomainGRPOTrainer
from ranks_helper import run_ranks
from trainer_helpers import DATA, digits, grpo_args, letters, shortness

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A random reward model of one label, saved as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("reward-model")
    tokenizer = new_tokenizer()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


async def patient(completions, **_):
    return digits(completions)


class Rewarded(DomainGRPOTrainer):
    """Keeps every batch of rewards with the texts that were scored."""

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_BF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.seen.append(([p + c for p, c in zip(prompts, completions, strict=True)], [*self._places], rewards_BF))
        return rewards_BF


def build(model, folder, rewards, processing_classes=None, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = grpo_args(folder, **{"max_steps": 1} | settings)
        tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        trainer = Rewarded(model, rewards, args, DATA, None, tokenizer, processing_classes)
    trainer.seen = []
    return trainer


def train(model, folder, rewards, **settings):
    trainer = build(model, folder, rewards, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return trainer


def scores(classifier, texts):
    """What the reward model gives each text alone."""
    model = LlamaForSequenceClassification.from_pretrained(classifier, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    model.config.pad_token_id = tokenizer.pad_token_id
    with torch.inference_mode():
        return torch.stack(
            [model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, 0] for text in texts]
        )


def check(trainer, classifier, columns, rank=0):
    """Reward models scored the rows of their domain, and no others."""
    texts, places, rewards_BF = trainer.seen[0]
    local_BF = rewards_BF[rank * len(texts) :][: len(texts)]
    expected_B = scores(classifier, texts)
    for column, domain in columns.items():
        own_B = torch.tensor([name == domain for name, _ in places])
        assert own_B.any()
        torch.testing.assert_close(local_BF[own_B, column], expected_B[own_B], rtol=1e-4, atol=1e-5)
        assert local_BF[~own_B, column].isnan().all()


@pytest.mark.parametrize("kind", ["id", "model"])
def test_a_reward_model_scores_the_rows_of_its_domain(kind, classifier, tiny_model, tmp_path):
    model = classifier
    if kind == "model":
        model = LlamaForSequenceClassification.from_pretrained(classifier, num_labels=1)
    rewards = {"math": [model, digits], "code": {"kind": letters}}
    trainer = train(str(tiny_model), tmp_path, rewards, reward_weights=[1.0, 2.0, 1.0])
    name = classifier.split("/")[-1]
    assert trainer.reward_func_names == [f"math/{name}", "math/digits", "code/kind"]
    check(trainer, classifier, {0: "math"})
    line = trainer.state.log_history[0]
    assert line["reward/math"] == pytest.approx(line[f"reward/math/{name}"] + 2 * line["reward/math/digits"], abs=1e-5)


def test_a_completion_that_one_reward_failed_on_has_no_reward_and_no_advantage(tiny_model, tmp_path):
    """``None`` does not apply: the other reward counts. ``FAILED`` leaves the completion out of its group."""

    def judge(completions, **_):
        return [FAILED if i % 4 == 1 else None if i % 4 == 2 else float(i) for i in range(len(completions))]

    class Kept(Rewarded):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            self.advantages_B = output["advantages"]
            return output

    args = grpo_args(tmp_path, max_steps=1)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model), padding_side="left")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Kept(str(tiny_model), {"math": [letters, judge], "code": letters}, args, DATA, None, tokenizer)
        trainer.seen = []
        trainer.train()
    _, places, rewards_BF = trainer.seen[0]
    math_B = torch.tensor([name == "math" for name, _ in places])
    number_B = torch.arange(int(math_B.sum())) % 4
    own_BF = rewards_BF[math_B]
    assert own_BF[number_B == 1, :2].isnan().all()
    assert own_BF[number_B == 2, 1].isnan().all()
    assert not own_BF[number_B == 2, 0].isnan().any()
    assert (trainer.advantages_B[math_B][number_B == 1] == 0).all()
    assert (trainer.advantages_B[math_B][number_B != 1] != 0).any()
    line = trainer.state.log_history[0]
    assert line["unscored/math"] == pytest.approx((number_B == 1).float().mean().item())
    assert line["unscored/code"] == 0.0


def test_processing_classes_are_given_as_the_rewards_are(classifier, tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    rewards = {"math": digits, "code": {"kind": letters, "liked": classifier}}
    for given in ({"code": {"liked": tokenizer}}, {"code": [None, tokenizer]}, [None, None, tokenizer]):
        trainer = build(str(tiny_model), tmp_path, rewards, given)
        assert trainer.reward_processing_classes == [None, None, tokenizer]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    check(trainer, classifier, {2: "code"})
    with pytest.raises(RewardError, match=r"reward_processing_classes\['code'\]: 1 for 2 rewards"):
        build(str(tiny_model), tmp_path, rewards, {"code": [tokenizer]})
    with pytest.raises(RewardError, match="reward_processing_classes: 'maths' is no domain"):
        build(str(tiny_model), tmp_path, rewards, {"maths": tokenizer})


def on_two_ranks(model, classifier, folder):
    """Functions, an async one, an id and a model, by domain and for all domains."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    rank, halved = int(os.environ["RANK"]), {"gradient_accumulation_steps": 2}
    object_ = LlamaForSequenceClassification.from_pretrained(classifier, num_labels=1)
    by_domain = {"math": [classifier, patient], "code": [letters, object_]}
    trainer = train(model, folder, by_domain, **halved)
    check(trainer, classifier, {0: "math", 3: "code"}, rank)
    for_all = train(model, folder, [classifier, shortness, patient], **halved)
    texts, _, rewards_BF = for_all.seen[0]
    torch.testing.assert_close(
        rewards_BF[rank * len(texts) :][: len(texts), 0], scores(classifier, texts), rtol=1e-4, atol=1e-5
    )
    return [line["reward/math"] for line in trainer.state.log_history if "reward/math" in line]


def failing(completions, **columns):
    raise ValueError(f"rank {os.environ['RANK']}")


def failing_on_two_ranks(model, classifier, folder):
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    try:
        train(model, folder, {"math": [classifier, failing], "code": letters}, gradient_accumulation_steps=2)
    except RewardError as error:
        return str(error)
    return "went on"


def test_every_kind_of_reward_works_on_two_ranks(classifier, tiny_model, tmp_path):
    first, second = run_ranks(on_two_ranks, 2, str(tiny_model), classifier, tmp_path)
    assert first == second


def test_a_function_that_fails_beside_a_reward_model_stops_both_ranks(classifier, tiny_model, tmp_path):
    first, second = run_ranks(failing_on_two_ranks, 2, str(tiny_model), classifier, tmp_path)
    assert first == second
    assert "reward 'failing' raised ValueError: rank 0" in first


def test_shared_functions_are_told_the_domain(tiny_model, tmp_path):
    domains = []

    def shared(completions, domain, **columns):
        assert columns[DOMAIN_COLUMN] == domain
        domains.extend(domain)
        return shortness(completions)

    train(str(tiny_model), tmp_path, [shared])
    assert sorted(domains) == ["code"] * 8 + ["math"] * 8

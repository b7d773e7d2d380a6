"""Training under ``reward_model``: who scores what on two ranks, one scale for all, and resuming with it."""

import json
import os
import statistics
import warnings

import pytest
import torch
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from counterpoint.config import load_config
from counterpoint.diagnosis.subject import open_subject
from counterpoint.engine import check_config, evaluate_model, plan_run
from counterpoint.engine import train as train_run
from counterpoint.errors import CounterpointError
from counterpoint.rewards import build_reward
from counterpoint.training import DomainGRPOTrainer
from counterpoint.training.normalizing import Normalizer, Running
from ranks_helper import run_ranks
from reward_models import save_reward_model
from trainer_helpers import DATA, grpo_args, letters

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_reward_model(tmp_path_factory.mktemp("reward-model"))


class Kept(DomainGRPOTrainer):
    """Keeps the domains and the rewards of every batch."""

    seen: list

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_BF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.seen.append(([name for name, _ in self._places], [*prompts], [*completions], rewards_BF))
        return rewards_BF


def build(model, classifier, folder, normalize=True, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reward = build_reward("reward_model", model=classifier, normalize=normalize)
        tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        args = grpo_args(folder, **settings)
        trainer = Kept(model, {"math": [reward, letters], "code": letters}, args, DATA, None, tokenizer)
    trainer.seen = []
    return trainer, reward


def on_two_ranks(model, classifier, folder):
    """What this rank's classifier read, and what all got."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    trainer, reward = build(model, classifier, folder, gradient_accumulation_steps=2)
    read, score_all = [], reward.score_all
    reward.score_all = lambda texts, rows: read.extend(texts) or score_all(texts, rows)
    trainer.train()
    own = [
        text
        for domains, _, texts, _ in trainer.seen
        for name, text in zip(domains, texts, strict=True)
        if name == "math"
    ]
    return {
        "read": sorted(read) == sorted(own),
        "number": len(read),
        "rewards": [rewards_BF.nan_to_num(-9).tolist() for *_, rewards_BF in trainer.seen],
        "running": trainer._rewards.normalizer.state_dict(),
        "raw": [line["reward_raw/math/reward_model"] for line in trainer.state.log_history if "reward/math" in line],
        "told": [line["reward_cut/math"] for line in trainer.state.log_history if "reward/math" in line],
    }


def test_two_ranks_score_their_own_completions_once_and_share_one_scale(classifier, tiny_model, tmp_path):
    first, second = run_ranks(on_two_ranks, 2, str(tiny_model), classifier, tmp_path)
    assert first["read"]
    assert second["read"]
    assert first["number"] + second["number"] == 3 * 8  # steps, completions of math in each
    for key in ("rewards", "running", "raw", "told"):
        assert first[key] == second[key]
    (running,) = first["running"].values()
    assert running["count"] == 24
    assert statistics.fmean(first["raw"]) == pytest.approx(running["mean"], abs=1e-4)
    assert first["told"] == [0.0] * 3


def test_one_domain_is_on_the_scale_of_all_its_logits_so_far(classifier, tiny_model, tmp_path):
    trainer, reward = build(str(tiny_model), classifier, tmp_path)
    trainer.train()
    logits = []
    for domains, prompts, completions, rewards_BF in trainer.seen:
        own = [i for i, name in enumerate(domains) if name == "math"]
        plain = build_reward("reward_model", model=classifier)
        new = plain(prompts=[prompts[i] for i in own], completions=[completions[i] for i in own])
        logits += new
        mean, deviation = statistics.fmean(logits), statistics.stdev(logits)
        expected = [(logit - mean) / deviation for logit in new]
        assert rewards_BF[own, 0].tolist() == pytest.approx(expected, abs=1e-4)
        others = [i for i in range(len(domains)) if i not in own]
        assert rewards_BF[others, 0].isnan().all()
    assert reward.kept


def test_a_resumed_training_goes_on_with_the_scale(classifier, tiny_model, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "steps_per_generation": 4}
    whole, _ = build(str(tiny_model), classifier, tmp_path, **settings)
    whole.train()
    resumed, _ = build(str(tiny_model), classifier, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed._rewards.normalizer == whole._rewards.normalizer
    assert resumed.seen
    assert torch.equal(resumed.seen[-1][3].nan_to_num(-9), whole.seen[-1][3].nan_to_num(-9))
    state = tmp_path / "checkpoint-2" / "counterpoint_state.json"
    saved = json.loads(state.read_text())
    assert saved["rewards"]["math/reward_model"]["count"] == 16
    state.write_text(json.dumps(saved | {"rewards": {"math/reward_model": {"count": -1}}}))
    with pytest.raises(CounterpointError, match="rewards"):
        build(str(tiny_model), classifier, tmp_path, **settings)[0].train(str(tmp_path / "checkpoint-2"))


def test_evaluations_give_logits_and_change_no_scale(classifier, tiny_model, tmp_path):
    trainer, _ = build(str(tiny_model), classifier, tmp_path, max_steps=1)
    trainer.train()
    before = trainer._rewards.normalizer.state_dict()
    trainer.seen = []
    trainer.evaluate(DATA)
    assert trainer._rewards.normalizer.state_dict() == before
    for domains, prompts, completions, rewards_BF in trainer.seen:
        own = [i for i, name in enumerate(domains) if name == "math"]
        plain = build_reward("reward_model", model=classifier)
        expected = plain(prompts=[prompts[i] for i in own], completions=[completions[i] for i in own])
        assert rewards_BF[own, 0].tolist() == pytest.approx(expected, abs=1e-4)


def test_running_numbers_are_those_of_all_at_once():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 7 + 1000
    running = Running()
    for part in values.split([1, 9, 0, 40]):
        running.add(part)
    running.add(torch.tensor([torch.nan, torch.inf]))
    assert (running.count, running.mean) == (50, pytest.approx(values.double().mean().item()))
    assert running.deviation == pytest.approx(values.double().std().item())
    assert Normalizer()("d/x", torch.tensor([3.0, 3.0, torch.nan])).nan_to_num(-1).tolist() == [0.0, 0.0, -1.0]


def test_plain_trl_trains_under_it(classifier, tiny_model, tmp_path):
    settings = {"num_generations": 4, "max_completion_length": 8, "max_steps": 1, "report_to": "none", "use_cpu": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = GRPOConfig(
            str(tmp_path), per_device_train_batch_size=8, bf16=False, logging_steps=1, save_strategy="no", **settings
        )
        tokenizer = AutoTokenizer.from_pretrained(str(tiny_model), padding_side="left")
        reward = build_reward("reward_model", model=classifier)
        rows = [{"prompt": row["prompt"]} for row in DATA["math"]]
        from datasets import Dataset

        trainer = GRPOTrainer(str(tiny_model), reward, args, Dataset.from_list(rows), processing_class=tokenizer)
        trainer.train()
    line = trainer.state.log_history[0]
    assert line["rewards/reward_model/std"] > 0
    assert line["reward_cut"] == 0.0


YAML = """
model: MODEL
domains:
  chat:
    source: {type: pocket, task: writing}
    limit: 100
    reward: {name: reward_model, options: {model: liked, normalize: true, max_length: 40}}
    metrics: [pocket]
    evaluation: {size: 4}
evaluation: {samples: 2}
run: {dir: DIR, device: cpu}
training: {max_steps: 2, per_device_train_batch_size: 8, num_generations: 4, max_completion_length: 8}
"""


@pytest.fixture(scope="module")
def written(tiny_model, classifier, tmp_path_factory):
    """A configuration with the classifier beside it, named by a relative path."""
    import shutil

    folder = tmp_path_factory.mktemp("yaml")
    shutil.copytree(classifier, folder / "liked")
    (folder / "chat.yaml").write_text(YAML.replace("MODEL", str(tiny_model)).replace("DIR", str(folder / "runs")))
    return folder / "chat.yaml"


def test_a_configuration_is_checked_trained_evaluated_and_diagnosed(written):
    config = load_config(written)
    assert not check_config(config)
    run = train_run(config, "chat")
    (before, after) = run.lines("evals.jsonl")
    assert set(before["metrics"]) == {"pocket"}
    (score,) = evaluate_model(config)
    assert score.mean == pytest.approx(before["mean"], abs=1e-5)
    steps = run.lines("metrics.jsonl")
    assert all("reward_raw/chat/reward_model" in line and line["reward_cut/chat"] == 0 for line in steps)
    subject = open_subject(run.path, run.checkpoint_path(2))
    reward = subject.domains["chat"].rewards[0].function
    assert reward.max_length == 40
    assert after["step"] == 2


def test_a_wrong_path_is_said_before_any_model_is_loaded(written, tmp_path):
    config = load_config(written, ["domains.chat.reward.options.model=./nowhere"])
    with pytest.raises(CounterpointError, match="nowhere"):
        plan_run(config)

"""Two small judges for smollm2-open.yaml, made on two CPU cores in ten to thirty minutes.

    python examples/smollm2_judges.py models/smollm2 models/smollm2-judges

``reward-model``: a classifier that prefers a reply to a chat prompt over the same reply to another prompt, and over one
with its words out of order (TRL's ``RewardTrainer``). ``judge``: a model that answers the `judge` reward's requests
about two sentences of a story with ``{"score": S}`` (TRL's ``SFTTrainer``); the untouched model answers with prose.
What is right is known by construction: replies are SmolLM2's own, and spoilt on purpose. Both are tried on prompts that
they did not see. They stand in for the large judges that one would use, and are as easily fooled as they are small.
"""

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from counterpoint.config import ModelConfig, load_config
from counterpoint.domains import Domain, load_domains
from counterpoint.evaluation import Sampling, generate
from counterpoint.models import load_model, load_tokenizer
from counterpoint.rewards import build_reward
from counterpoint.rewards.judge import read_score

FROZEN = 20
"""The embeddings and this many of the 30 layers stay as they are: half the time of a step."""

HELD_OUT = 16
"""Prompts that a judge is tried on and never trained on."""

SHARED = {
    "per_device_train_batch_size": 6,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 4,
    "logging_steps": 8,
    "save_strategy": "no",
    "report_to": "none",
    "bf16": False,  # a CPU without bfloat16 units is five times slower in it
    "use_cpu": True,
    "activation_checkpointing": False,
    "seed": 0,
}


def own_replies(policy: ModelConfig, domain: Domain, count: int) -> list[tuple[Any, str]]:
    """``count`` prompts of the domain, each with a reply of the model."""
    model = load_model(policy)
    rows = random.Random(0).sample(domain.train, count)
    prompts = [row["prompt"] for row in rows]
    completions = generate(model, load_tokenizer(policy), prompts, Sampling(temperature=0.8, max_new_tokens=48))
    return [(prompt, completion.text) for prompt, completion in zip(prompts, completions, strict=True)]


def shuffled(text: str, rng: random.Random) -> str:
    """The words in another order."""
    words = text.split()
    return " ".join(rng.sample(words, len(words)))


def preferences(replies: list[tuple[Any, str]]) -> list[dict[str, Any]]:
    """Pairs in TRL's form: two per prompt, against another prompt's reply and against words out of order."""
    rng, pairs = random.Random(1), []
    for i, (prompt, reply) in enumerate(replies):
        for worse in (replies[i - 1][1], shuffled(reply, rng)):
            chosen, rejected = ([{"role": "assistant", "content": text}] for text in (reply, worse))
            pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs


def judgements(replies: list[tuple[Any, str]]) -> list[tuple[Any, str, float]]:
    """(prompt, reply, score): whole sentences 1, cut off in the middle 0.5, another prompt's or out of order 0."""
    rng, cases = random.Random(2), []
    for i, (prompt, reply) in enumerate(replies):
        whole = reply[: max(reply.rfind(mark) for mark in ".!?") + 1]
        if len(whole.split()) < 6:
            continue
        half = " ".join(whole.split()[: len(whole.split()) // 2])
        spoilt = replies[i - 1][1] if rng.random() < 0.5 else shuffled(whole, rng)
        cases += [(prompt, whole, 1.0), (prompt, half, 0.5), (prompt, spoilt, 0.0)]
    return cases


def freeze(model: Any) -> None:
    """Lets only the upper layers and what follows them learn."""
    body = model.model
    for part in (body.embed_tokens, *body.layers[:FROZEN]):
        part.requires_grad_(False)


def train_reward_model(folder: str, output: Path, pairs: list[dict[str, Any]], steps: int) -> float:
    """Trains and saves; returns the share of unseen pairs that it orders rightly."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    freeze(model)
    config = RewardConfig(output_dir=str(output), max_steps=steps, max_length=256, **SHARED)
    unseen, seen = pairs[: 2 * HELD_OUT], pairs[2 * HELD_OUT :]
    trainer = RewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(seen),
        eval_dataset=Dataset.from_list(unseen),
        processing_class=tokenizer,
    )
    trainer.train()
    right = trainer.evaluate()["eval_accuracy"]
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return float(right)


def train_judge(folder: str, output: Path, cases: list[tuple[Any, str, float]], steps: int, rubric: str) -> float:
    """Trains and saves; returns the share of unseen replies that get their score."""
    reward = build_reward("judge", model="judge", rubric=rubric, structured=False)
    asked = [reward.request(text, reward.prepare({"prompt": prompt}))["messages"] for prompt, text, _ in cases]
    answers = [[{"role": "assistant", "content": f'{{"score": {score:g}}}'}] for *_, score in cases]
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in zip(asked, answers, strict=True)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    freeze(model)
    settings = SHARED | {"learning_rate": 2e-4}
    config = SFTConfig(output_dir=str(output), max_steps=steps, max_length=640, **settings)
    seen = Dataset.from_list(rows[3 * HELD_OUT :])
    SFTTrainer(model=model, args=config, train_dataset=seen, processing_class=tokenizer).train()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    greedy = Sampling(temperature=0.0, max_new_tokens=16)
    said = generate(model, tokenizer, asked[: 3 * HELD_OUT], greedy)
    scores = [read_score(completion.text, reward.scale) for completion in said]
    return sum(score == case[2] for score, case in zip(scores, cases, strict=False)) / len(said)


def main() -> None:
    """Reads the command line, makes both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder that smollm2_fetch.py made")
    parser.add_argument("output", type=Path, help="folder of the two new checkpoints")
    parser.add_argument("--prompts", type=int, default=112, help="prompts for each of the two")
    parser.add_argument("--steps", type=int, default=24, help="steps for each of the two")
    options = parser.parse_args()

    torch.manual_seed(0)
    settings = [f"model={options.model}", "domains.chat.reward=copying"]  # its own reward is made here
    config = load_config(Path(__file__).with_name("smollm2-open.yaml"), settings)
    rubric = config.domains["writing"].reward[0].options["rubric"]
    domains = {domain.name: domain for domain in load_domains(config, load_tokenizer(config.model))}
    start = time.perf_counter()
    replies = {name: own_replies(config.model, domains[name], options.prompts) for name in ("chat", "writing")}
    print(f"{2 * options.prompts} replies ({time.perf_counter() - start:.0f} s)", flush=True)
    start = time.perf_counter()
    pairs = preferences(replies["chat"])
    right = train_reward_model(options.model, options.output / "reward-model", pairs, options.steps)
    print(f"reward model: {right:.0%} of unseen pairs right ({time.perf_counter() - start:.0f} s)", flush=True)
    start = time.perf_counter()
    right = train_judge(options.model, options.output / "judge", judgements(replies["writing"]), options.steps, rubric)
    print(f"judge: {right:.0%} of unseen replies get their score ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()

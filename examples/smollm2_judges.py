"""Two small judges for smollm2-open.yaml, made on two CPU cores in about ten minutes.

    python examples/smollm2_judges.py models/smollm2 models/smollm2-judges

``reward-model``: a classifier that prefers a reply to a chat prompt over the same reply to another prompt, and over one
with its words out of order (TRL's ``RewardTrainer``). ``judge``: a classifier of two sentences of a story into the
scores 0, 0.5 and 1, which smollm2_judge_server.py serves behind OpenAI's API. What is right is known by construction:
replies are SmolLM2's own, and spoilt on purpose. Both are tried on prompts that they did not see. They stand in for the
large judges that one would use, and are as easily fooled as they are small.
"""

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from smollm2_judge_server import SCORES, read_by_judge  # beside this file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from trl import RewardConfig, RewardTrainer

from counterpoint.config import ModelConfig, load_config
from counterpoint.domains import Domain, load_domains
from counterpoint.evaluation import Sampling, generate
from counterpoint.models import load_model, load_tokenizer

FROZEN = 20
"""The embeddings and this many of the 30 layers of the reward model stay as they are: half the time of a step."""

FROZEN_JUDGE = 10

HELD_OUT = 16
"""Prompts that a judge is tried on and never trained on."""

SHARED = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 4,
    "logging_steps": 8,
    "save_strategy": "no",
    "report_to": "none",
    "bf16": False,  # a CPU without bfloat16 units is five times slower in it
    "use_cpu": True,
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


def judgements(replies: list[tuple[Any, str]]) -> list[tuple[str, str, float]]:
    """(prompt, reply, score): whole sentences 1, cut off 0.5, another prompt's or words out of order 0."""
    rng, cases = random.Random(2), []
    for i, (prompt, reply) in enumerate(replies):
        whole = sentences(reply)
        if len(whole.split()) < 6:
            continue
        words = reply.split()
        cut = " ".join(words[: rng.randrange(len(words) // 2, len(words) + 1)]).rstrip('.!?"')
        spoilt = replies[i - 1][1] if rng.random() < 0.5 else shuffled(reply, rng)
        if rng.random() < 0.5:  # so that an end alone tells nothing
            spoilt = sentences(spoilt) or spoilt
        cases += [(prompt[-1]["content"], text, score) for text, score in ((whole, 1.0), (cut, 0.5), (spoilt, 0.0))]
    return cases


def sentences(text: str) -> str:
    """The text up to its last full stop, exclamation or question mark."""
    return text[: max(text.rfind(mark) for mark in ".!?") + 1]


def freeze(model: Any, layers: int) -> None:
    """Lets only what follows the embeddings and the lowest ``layers`` learn."""
    for part in (model.model.embed_tokens, *model.model.layers[:layers]):
        part.requires_grad_(False)


def train_reward_model(folder: str, output: Path, pairs: list[dict[str, Any]], steps: int) -> float:
    """Trains and saves; returns the share of unseen pairs that it orders rightly."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    freeze(model, FROZEN)
    config = RewardConfig(
        output_dir=str(output),
        max_steps=steps,
        max_length=256,
        per_device_train_batch_size=6,
        learning_rate=5e-5,
        activation_checkpointing=False,
        **SHARED,
    )
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


def train_judge(folder: str, output: Path, cases: list[tuple[str, str, float]], steps: int) -> list[list[int]]:
    """Trains and saves; returns how many unseen replies of each score (rows) got each score (columns)."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(SCORES), dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    freeze(model, FROZEN_JUDGE)
    rows = [
        {**read_by_judge(tokenizer, prompt, reply), "labels": SCORES.index(score)} for prompt, reply, score in cases
    ]
    unseen, seen = rows[: 3 * HELD_OUT], rows[3 * HELD_OUT :]
    config = TrainingArguments(
        output_dir=str(output), max_steps=steps, per_device_train_batch_size=12, learning_rate=2e-4, **SHARED
    )
    trainer = Trainer(model=model, args=config, train_dataset=seen, data_collator=DataCollatorWithPadding(tokenizer))
    trainer.train()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    said = trainer.predict(unseen).predictions.argmax(-1)
    counts = [[0] * len(SCORES) for _ in SCORES]
    for row, found in zip(unseen, said, strict=True):
        counts[row["labels"]][int(found)] += 1
    return counts


def main() -> None:
    """Reads the command line, makes both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder that smollm2_fetch.py made")
    parser.add_argument("output", type=Path, help="folder of the two new checkpoints")
    parser.add_argument("--prompts", type=int, default=112, help="prompts for each of the two")
    parser.add_argument("--steps", type=int, default=24, help="steps of the reward model")
    parser.add_argument("--judge-steps", type=int, default=60, help="steps of the judge")
    options = parser.parse_args()

    torch.manual_seed(0)
    settings = [f"model={options.model}", "domains.chat.reward=copying"]  # its own reward is made here
    config = load_config(Path(__file__).with_name("smollm2-open.yaml"), settings)
    domains = {domain.name: domain for domain in load_domains(config, load_tokenizer(config.model))}
    start = time.perf_counter()
    replies = {name: own_replies(config.model, domains[name], options.prompts) for name in ("chat", "writing")}
    print(f"{2 * options.prompts} replies ({time.perf_counter() - start:.0f} s)", flush=True)
    start = time.perf_counter()
    pairs = preferences(replies["chat"])
    right = train_reward_model(options.model, options.output / "reward-model", pairs, options.steps)
    print(f"reward model: {right:.0%} of unseen pairs right ({time.perf_counter() - start:.0f} s)", flush=True)
    start = time.perf_counter()
    counts = train_judge(options.model, options.output / "judge", judgements(replies["writing"]), options.judge_steps)
    right = sum(counts[i][i] for i in range(len(SCORES)))
    print(f"judge: {right} of {3 * HELD_OUT} unseen replies get their score ({time.perf_counter() - start:.0f} s)")
    for score, row in zip(SCORES, counts, strict=True):
        print(
            f"  {score:g}: " + ", ".join(f"{count} judged {found:g}" for found, count in zip(SCORES, row, strict=True))
        )


if __name__ == "__main__":
    main()

"""A few minutes of supervised learning on all four domains of smollm2.yaml, before reinforcement learning.

    python examples/smollm2_warmup.py models/smollm2 models/smollm2-warm

The untouched model solves next to no word problem, and where no completion of a prompt is right there is nothing to
reinforce. It learns here from references (math, code, qa) and from those of its own replies that follow the instruction
(instructions); learning short answers alone would cost it the longer replies. Held-out rows are never seen.
"""

import argparse
import copy
import itertools
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from counterpoint.config import load_config
from counterpoint.domains import Domain, load_domains
from counterpoint.evaluation import Sampling, generate, score_rows
from counterpoint.models import load_model, load_tokenizer

Pair = tuple[Any, str]
"""A prompt and the reply to learn."""

IGNORED = -100  # label of tokens that are not learned


def math_reply(row: dict[str, Any]) -> str:
    """``X=((32.0+42.0)-35.0)`` as ``(32 + 42) - 35``."""
    expression = re.sub(r"\.0\b", "", row["solution"].removeprefix("X=")).removeprefix("(").removesuffix(")")
    return re.sub(r"([-+*/])", r" \1 ", expression)


def code_reply(row: dict[str, Any]) -> str:
    """The reference program in a fence."""
    lines = (line.rstrip() for line in row["solution"].replace("\t", "    ").splitlines())
    return "```python\n" + "\n".join(lines).strip() + "\n```"


def qa_reply(row: dict[str, Any]) -> str:
    """The right option, letter and text."""
    return next(f"{c['label']}. {c['text']}" for c in row["choices"] if c["label"] == row["answer"])


REPLIES = {"math": math_reply, "code": code_reply, "qa": qa_reply}


def own_replies(model: Any, tokenizer: Any, domain: Domain, num_tokens: int) -> list[Pair]:
    """Of five sampled replies per prompt those that end and earn the full reward."""
    rows = [row for row in domain.train for _ in range(5)]
    sampling = Sampling(temperature=0.8, max_new_tokens=num_tokens)
    fast = copy.deepcopy(model).to(torch.bfloat16)
    completions = generate(fast, tokenizer, [row["prompt"] for row in rows], sampling)
    rewards = score_rows(domain, rows, completions)
    return [
        (row["prompt"], completion.text)
        for row, completion, reward in zip(rows, completions, rewards, strict=True)
        if reward == 1.0 and not completion.truncated
    ]


def batches(pairs: dict[str, list[Pair]], per_domain: int, seed: int) -> Iterator[list[Pair]]:
    """Endless batches with ``per_domain`` pairs of every domain, each domain reshuffled per pass."""
    rng = random.Random(seed)

    def stream(own: list[Pair]) -> Iterator[Pair]:
        while True:
            yield from rng.sample(own, len(own))

    streams = [stream(own) for own in pairs.values()]
    while True:
        yield [pair for own in streams for pair in itertools.islice(own, per_domain)]


def encode(tokenizer: Any, pairs: list[Pair], max_tokens: int) -> dict[str, torch.Tensor]:
    """Token ids, attention mask and labels ``[B, T]``; only replies and their end token are learned."""
    rows, labels = [], []
    for prompt, reply in pairs:
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        before = tokenizer(text, add_special_tokens=False)["input_ids"]
        after = [*tokenizer(reply, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append((before + after)[:max_tokens])
        labels.append(([IGNORED] * len(before) + after)[:max_tokens])
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor([row + [IGNORED] * (width - len(row)) for row in labels]),
    }


def learn(model: Any, tokenizer: Any, pairs: dict[str, list[Pair]], steps: int, rate: float, seed: int) -> None:
    """Supervised learning with AdamW; float32 weights, bfloat16 arithmetic."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 5) * (1 - 0.9 * s / steps))
    model.train()
    for step, batch in zip(range(1, steps + 1), batches(pairs, 4, seed), strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**encode(tokenizer, batch, 256)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 5 == 0:
            print(f"step {step}/{steps}: loss {loss.item():.3f}", flush=True)


def main() -> None:
    """Reads the command line, warms up, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder that smollm2_fetch.py made")
    parser.add_argument("output", help="folder of the new checkpoint")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    config = load_config(Path(__file__).with_name("smollm2.yaml"), [f"model={options.model}"])
    tokenizer, model = load_tokenizer(config.model), load_model(config.model)
    pairs: dict[str, list[Pair]] = {}
    for domain in load_domains(config, tokenizer):
        start = time.perf_counter()
        if domain.name in REPLIES:
            pairs[domain.name] = [(row["prompt"], REPLIES[domain.name](row)) for row in domain.train]
        else:
            pairs[domain.name] = own_replies(model, tokenizer, domain, config.training["max_completion_length"])
        print(f"{domain.name}: {len(pairs[domain.name])} replies ({time.perf_counter() - start:.0f} s)", flush=True)
    start = time.perf_counter()
    learn(model, tokenizer, pairs, options.steps, options.learning_rate, options.seed)
    print(f"learned for {time.perf_counter() - start:.0f} s")
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()

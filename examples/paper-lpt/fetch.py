"""The data of LPT's four domains as JSONL: 5,120 prompts of each to train on, and a validation set of each.

    python examples/paper-lpt/fetch.py data/lpt

Reads the data sets from the Hugging Face hub (about 10 GB, most of it code tests), draws with a fixed seed, and writes
``DOMAIN.jsonl`` and ``DOMAIN-validation.jsonl``. The paper's numbers of rows and its sources are kept; which rows it
drew is not known.
"""

import argparse
import json
import random
import string
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

TRAIN, VALIDATION, SEED = 5120, 50, 0
MOST_TEST_BYTES = 200_000
"""Longest tests of a program that are kept: a few problems have megabytes of them."""

WRITING = (
    "Crownelius/Creative-Writing-Sonnet4.6-800x",
    "Crownelius/Creative-Writing-Gemini3Pro-2700x",
    "Crownelius/Creative-Writing-Reasoning-KimiK2.5-600x",
    "Crownelius/Creative-Writing-Qwen3.5Plus-2000x",
)
_PROMPTS, _REPLIES = ("prompt", "instruction", "input", "question"), ("response", "output", "completion", "answer")


def math(row: Row) -> Row | None:
    """A problem of OpenR1-Math with its answer; None without one, and for proofs."""
    answer = str(row["answer"] or "").strip()
    if not answer or str(row.get("question_type") or "") == "proof":
        return None
    return {"prompt": row["problem"], "answer": answer}


def code(row: Row) -> Row | None:
    """A problem of KlearReasoner-CodeSub with its inputs and outputs as JSON; None where they are very long."""
    tests = row["reward_model"]["ground_truth"]
    return {"prompt": row["prompt"], "tests": tests} if len(tests) <= MOST_TEST_BYTES else None


def qa(row: Row) -> Row | None:
    """A question of SuperGPQA with its options under letters, and the letter of the right one."""
    letters = string.ascii_uppercase
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, row["options"], strict=False))
    prompt = f"{row['question']}\n\n{options}\n\nAnswer with the letter of the right option."
    stratum = [row["subfield"], row["difficulty"]]
    return {"prompt": prompt, "answer": row["answer_letter"], "choices": row["options"], "stratum": stratum}


def writing(row: Row) -> Row | None:
    """A prompt for a piece of writing, with what the data set's model wrote as the reference.

    Raises:
        KeyError: no column has a name that prompts or replies have.
    """
    prompt, reply = (next((row[name] for name in names if row.get(name)), None) for names in (_PROMPTS, _REPLIES))
    if not isinstance(prompt, str) or not isinstance(reply, str):
        raise KeyError(f"no prompt or reply among the columns {', '.join(row)}; add their names to this script")
    return {"prompt": prompt, "answer": reply.rsplit("</think>", 1)[-1].strip()}


def draw(rows: Sequence[Row], size: int, stratum: Callable[[Row], Hashable] = lambda row: None) -> list[Row]:
    """``size`` rows in random order, each stratum by its share of all rows as nearly as whole rows allow.

    Raises:
        ValueError: there are fewer rows.
    """
    if len(rows) < size:
        raise ValueError(f"{size} rows are to be drawn, and there are {len(rows)}.")
    shuffled = random.Random(SEED).sample(list(rows), len(rows))
    groups: dict[Hashable, list[Row]] = defaultdict(list)
    for row in shuffled:
        groups[stratum(row)].append(row)
    # a row's place within its group, as a share of the group: taking the smallest takes the same share of every group
    places = [((index + 0.5) / len(group), row) for group in groups.values() for index, row in enumerate(group)]
    chosen = [row for _, row in sorted(places, key=lambda item: item[0])[:size]]
    return random.Random(SEED).sample(chosen, size)


def unique(rows: Iterable[Row | None]) -> list[Row]:
    """The rows there are, each prompt once."""
    return list({json.dumps(row["prompt"]): row for row in rows if row is not None}.values())


def load(name: str, split: str = "train") -> Iterator[Row]:
    """The rows of a data set of the hub."""
    from datasets import load_dataset

    print(f"Reading {name}", flush=True)
    yield from load_dataset(name, split=split)


def write(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"  {path}", flush=True)


def fetch(folder: Path) -> None:
    """Writes eight files into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    sources: dict[str, list[Row]] = {
        "math": unique(map(math, load("open-r1/OpenR1-Math-220k"))),
        "code": unique(map(code, load("Kwai-Klear/KlearReasoner-CodeSub-15K"))),
        "qa": unique(map(qa, load("m-a-p/SuperGPQA"))),
        "writing": unique(row for name in WRITING for row in map(writing, load(name))),
    }
    for name, rows in sources.items():
        held_out = 0 if name == "math" else VALIDATION
        drawn = draw(rows, TRAIN + held_out, lambda row: tuple(row.get("stratum", ())))
        write(folder / f"{name}.jsonl", drawn[held_out:])
        if held_out:
            write(folder / f"{name}-validation.jsonl", drawn[:held_out])
    write(folder / "math-validation.jsonl", unique(map(math, load("math-ai/aime25", split="test"))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    fetch(parser.parse_args().folder)

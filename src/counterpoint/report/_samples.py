"""Sample completions of one prompt before and after training, side by side."""

from typing import Any

from counterpoint.report._detail import Detail
from counterpoint.report._read import RunData
from counterpoint.report._text import clean, number

Sample = dict[str, Any]


def samples(run: RunData, domains: list[str], detail: Detail) -> list[dict[str, Any]]:
    """Per domain the first prompts of ``samples.jsonl``, those with both a before and a later completion first.

    Nothing is selected by score: a page that showed the best completions would flatter every run.
    """
    return [
        {"domain": clean(name, 60), "colour": index % 8, "samples": found}
        for index, name in enumerate(domains)
        if (found := _of_domain(run, name, detail))
    ]


def _of_domain(run: RunData, domain: str, detail: Detail) -> list[Sample]:
    by_prompt: dict[str, Sample] = {}
    for row in run.samples:
        if str(row.get("domain")) != domain:
            continue
        prompt = _flat(row.get("prompt"))
        sample = by_prompt.setdefault(prompt, {"prompt": clean(prompt, detail.characters), "reference": None})
        if row.get("reference") is not None:
            sample["reference"] = clean(_flat(row["reference"]), 400)
        before = row.get("when") == "before"
        # The first completion before, the last one after: the whole distance the run went.
        if not before or "before" not in sample:
            sample["before" if before else "after"] = {
                "step": int(number(row.get("step")) or 0),
                "completion": clean(_flat(row.get("completion")), detail.characters),
                "reward": number(row.get("reward")),
            }
    both_first = sorted(by_prompt.values(), key=lambda sample: not ("before" in sample and "after" in sample))
    return [{"before": None, "after": None, **sample, "gain": _gain(sample)} for sample in both_first[: detail.samples]]


def _gain(sample: Sample) -> float | None:
    """Reward after minus reward before; None where one of them is unknown."""
    before, after = ((sample.get(when) or {}).get("reward") for when in ("before", "after"))
    return None if before is None or after is None else after - before


def _flat(value: object) -> str:
    """The text of a prompt, a completion or a reference, given as text or as messages."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return "\n".join(f"{part.get('role', '')}: {part.get('content', '')}" for part in value)
    return "" if value is None else value if isinstance(value, str) else str(value)

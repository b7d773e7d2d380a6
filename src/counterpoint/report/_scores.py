"""Held-out scores: before and after, over the run, and beside other runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from counterpoint.errors import CounterpointError
from counterpoint.report._fields import row_of
from counterpoint.report._read import RunData
from counterpoint.report._text import clean, number
from counterpoint.runs.run import Run
from counterpoint.stats import difference_interval

Score = dict[str, Any]


def evaluation(run: RunData, domains: list[str]) -> dict[str, Any]:
    """Rows ``domain, before, after, change, interval, apart`` and every evaluation over the steps.

    ``interval`` is that of the change over the same prompts, ``apart`` means that the two intervals do not overlap.
    ``after`` is the last evaluation where the run has no final one; its ``step`` says when it was.
    """
    rows = []
    for name in domains:
        before, after = _first(run, name), _last(run, name)
        row = {"domain": clean(name, 60), "before": before, "after": after, "parts": _parts(before, after)}
        rows.append(row | _change(before, after))
    scored = [row for row in rows if row["before"] and row["after"]]
    average = None
    if len(scored) > 1:
        means = {when: sum(row[when]["mean"] for row in scored) / len(scored) for when in ("before", "after")}
        average = {**means, "change": means["after"] - means["before"]}
    over_time = [{"domain": clean(name, 60), "scores": _history(run, name)} for name in domains]
    own = _own_stages(run)
    final = any(row.get("when") == "after" for row in run.evals)
    return {"rows": rows, "average": average, "over_time": over_time, "final": final, "own": own}


def _own_stages(run: RunData) -> dict[str, Any] | None:
    """Rows ``domain, own, end, change, fell`` of a sequential run whose files are whole, and the verdict on it."""
    try:
        judged = Run(Path(run.name), run.info, lambda name: list(run.evals))
        rows = [
            {"domain": clean(one.domain, 60), "fell": one.fell}
            | {"own": judged.evaluations[one.domain, one.first_step]["mean"]}
            | {"end": judged.evaluations[one.domain, one.last_step]["mean"]}
            | {"change": one.corrected.value, "low": one.corrected.low, "high": one.corrected.high}
            for one in judged.at_the_end
        ]
        if not all(number(row[key]) is not None for row in rows for key in ("own", "end", "change", "low", "high")):
            return None
        return {"rows": rows, "verdict": clean(judged.verdict(), 1000)} if rows else None
    except (CounterpointError, KeyError, TypeError, ValueError, AttributeError):  # a page is made of what can be read
        return None


def comparison(runs: Sequence[RunData], domains: list[str]) -> dict[str, Any] | None:
    """Rows ``domain, before, after`` with one ``after`` per run, the first run's ``before``; None for a single run."""
    if len(runs) < 2:
        return None
    rows = [
        {"domain": clean(name, 60), "before": _first(runs[0], name), "after": [_last(run, name) for run in runs]}
        for name in domains
    ]
    starts = [[(_first(run, name) or {}).get("mean") for name in domains] for run in runs]
    same_start = all(
        value is None or first is None or abs(value - first) < 1e-9
        for start in starts[1:]
        for value, first in zip(start, starts[0], strict=True)
    )
    return {"runs": _labels(runs), "rows": rows, "same_start": same_start}


def _labels(runs: Sequence[RunData]) -> list[str]:
    """A label for each run: its strategy where that tells the runs apart, its name otherwise."""
    strategies = [run.info.get("strategy") for run in runs]
    texts = [value if isinstance(value, str) else "" for value in strategies]
    names = texts if all(texts) and len(set(texts)) == len(texts) else [run.name for run in runs]
    return [
        clean(name, 40) if names.count(name) == 1 else f"{clean(name, 36)} ({i + 1})" for i, name in enumerate(names)
    ]


def _change(before: Score | None, after: Score | None) -> dict[str, Any]:
    if not before or not after:
        return {"change": None, "interval": None, "apart": False}
    bounds = [score[side] for score in (before, after) for side in ("low", "high")]
    known = None not in bounds
    apart = known and (before["high"] < after["low"] or after["high"] < before["low"])
    return {"change": after["mean"] - before["mean"], "interval": _paired(before, after), "apart": apart}


def _parts(before: Score | None, after: Score | None) -> list[dict[str, Any]]:
    """What every function of the domain's reward gave on average, where it has several."""
    found = [{} if score is None else score["parts"] for score in (before, after)]
    return [
        {"part": name, "before": found[0].get(name), "after": found[1].get(name)} for name in {**found[0], **found[1]}
    ]


def _paired(before: Score, after: Score) -> dict[str, float] | None:
    """The 95 % interval of the change over the same prompts; None where the runs did not keep a score per prompt."""
    pairs = before["scores"], after["scores"]
    both = [pair for pair in zip(*pairs, strict=False) if None not in pair]
    if not both or len(pairs[0]) != len(pairs[1]):
        return None
    interval = difference_interval(*pairs)
    return {"low": interval.low, "high": interval.high}


def _history(run: RunData, domain: str) -> list[Score]:
    """The domain's evaluations in the order of their steps; of two at one step the later line, a resumed run's."""
    by_moment = {}
    for row in run.evals:
        score = _score(row)
        if score and str(row.get("domain")) == domain:
            by_moment[(score["step"], score["when"] == "after")] = score
    return [by_moment[key] for key in sorted(by_moment)]


def _first(run: RunData, domain: str) -> Score | None:
    return next((score for score in _history(run, domain) if score["when"] == "before"), None)


def _last(run: RunData, domain: str) -> Score | None:
    later = [score for score in _history(run, domain) if score["when"] != "before"]
    final = [score for score in later if score["when"] == "after"]
    candidates = final or later
    return candidates[-1] if candidates else None


def _score(row: dict[str, Any]) -> Score | None:
    mean = number(row.get("mean"))
    if mean is None:
        return None
    low, high = number(row.get("low")), number(row.get("high"))
    whole = low is not None and high is not None and low <= high
    return {
        "step": int(number(row.get("step")) or 0),
        "when": clean(row.get("when"), 20),
        "mean": mean,
        "low": low if whole else None,
        "high": high if whole else None,
        "scores": [number(value) for value in row.get("scores") or ()],
        "parts": {clean(name, 60): number(part) for name, part in row_of(row.get("parts")).items()},
        "unscored": int(number(row.get("unscored")) or 0),
        **{key: number(row.get(key)) for key in ("greedy", "prompts", "samples", "completion_length", "truncated")},
    }

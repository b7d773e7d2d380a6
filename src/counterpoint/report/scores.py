"""Held-out scores: the verdict and the three numbers of a run, before and after, over the run, and other runs."""

import math
from collections.abc import Sequence
from typing import Any

from counterpoint.errors import CounterpointError
from counterpoint.evaluation.comparison import AVERAGE, Cell, Comparison, compare_scored
from counterpoint.report.read import RunData
from counterpoint.report.text import clean, list_of, number, row_of
from counterpoint.runs.run import Run, Since
from counterpoint.stats import Estimate

Score = dict[str, Any]


def evaluation(runs: Sequence[RunData], domains: list[str]) -> dict[str, Any]:
    """The ``head`` of the page, rows ``domain, before, after, change, parts``, their ``changes``, and every evaluation.

    ``after`` is the last evaluation where the run has no final one; its ``step`` says when it was. ``changes`` compares
    before with after. ``own`` has rows for the domains of a sequential run that were trained before others.
    """
    run = runs[0]
    rows: list[dict[str, Any]] = []
    for name in domains:
        before, after = _first(run, name), _last(run, name)
        change = after["mean"] - before["mean"] if before and after else None
        row = {"domain": clean(name, 60), "before": before, "after": after, "change": change}
        rows.append(row | {"parts": _parts(before, after)})
    changes = _compared({when: [(row["domain"], row[when]) for row in rows] for when in ("before", "after")})
    own = _own_stages(run)
    final = any(row.get("when") == "after" for row in run.evals)
    return {
        "head": _head_of_stages(own) if own else _head(changes, final),
        "rows": rows,
        "changes": changes,
        "over_time": _over_time(run, domains),
        "others": [_over_time(other, domains) for other in runs[1:]],
        "final": final,
        "own": own,
    }


def _over_time(run: RunData, domains: list[str]) -> list[dict[str, Any]]:
    return [{"domain": clean(name, 60), "scores": _history(run, name)} for name in domains]


def _head(changes: Comparison, final: bool) -> dict[str, Any] | None:
    """The verdict and three numbers of a run: the average change, the worst domain, and how many domains fell."""
    cells = [cell for name in changes.domains if (cell := changes.cell("after", name)) is not None and cell.change]
    if not cells:
        return None
    fell, rose = ([cell for cell in cells if cell.verdict == verdict] for verdict in ("lower", "higher"))
    worst = min(cells, key=lambda cell: cell.change.value if cell.change else 0)
    mean, start = (changes.cell(when, AVERAGE) or changes.cell(when, cells[0].domain) for when in ("after", "before"))
    numbers: list[dict[str, Any]] = []
    if mean is not None and start is not None and mean.change is not None:
        end = "at the end" if final else "so far"
        label = f"Average score: {start.score.value:.2f} before, {mean.score.value:.2f} {end}"
        numbers.append({"label": label, "change": mean.change, "verdict": mean.verdict})
    numbers.append({"label": f"Worst domain: {worst.domain}", "change": worst.change, "verdict": worst.verdict})
    numbers.append({"label": "Domains that fell beyond noise", "text": f"{len(fell)} of {len(cells)}"})
    return {"verdict": f"{_listed('fell', fell)} {_listed('rose', rose)}", "numbers": numbers}


def _listed(verb: str, cells: Sequence[Cell]) -> str:
    """``No domain fell beyond noise.`` or ``Fell beyond noise: math, code.``"""
    names = ", ".join(cell.domain for cell in cells)
    return f"{verb.capitalize()} beyond noise: {names}." if cells else f"No domain {verb} beyond noise."


def _head_of_stages(own: dict[str, Any]) -> dict[str, Any]:
    """The same of a sequential run: how many domains fell since their own stage, the largest loss, and the average."""
    rows: list[dict[str, Any]] = own["rows"]
    fell = [row for row in rows if row["fell"]]
    worst = min(rows, key=lambda row: row["change"].value)
    mean = sum(row["change"].value for row in rows) / len(rows)
    return {
        "verdict": own["verdict"],
        "numbers": [
            {"label": "Domains that fell after their own stage", "text": f"{len(fell)} of {len(rows)}"},
            {
                "label": f"Largest change since: {worst['domain']}",
                "change": worst["change"],
                "verdict": "lower" if worst["fell"] else "within noise",
            },
            {"label": "Average change since", "text": f"{mean:+.2f}".replace("-", "\u2212")},
        ],
    }


def _own_stages(run: RunData) -> dict[str, Any] | None:
    """Rows ``domain, own, end, change, fell`` of a sequential run whose files are whole, and the verdict on it."""
    try:
        judged = Run(run.path, run.info, lambda name: list(run.evals))
        rows = [_own_row(judged, one) for one in judged.at_the_end]
        return {"rows": rows, "verdict": clean(judged.verdict(), 1000)} if rows else None
    except (CounterpointError, KeyError, TypeError, ValueError, AttributeError):  # a page is made of what can be read
        return None


def _own_row(judged: Run, since: Since) -> dict[str, Any]:
    own, end = (number(judged.evaluations[since.domain, at]["mean"]) for at in (since.first_step, since.last_step))
    if own is None or end is None:
        raise CounterpointError(f"{since.domain}: an evaluation without a mean")
    domain = clean(since.domain, 60)
    return {"domain": domain, "own": own, "end": end, "change": since.corrected, "fell": since.fell}


def comparison(runs: Sequence[RunData], domains: list[str]) -> tuple[Comparison, bool] | None:
    """The last scores of several runs, and whether they started from the same ones; None for a single run."""
    if len(runs) < 2:
        return None
    labels = labels_of_runs(runs)
    scored = {
        label: [(clean(name, 60), _last(run, name) if _same_prompts(runs[0], run, name) else _alone(_last(run, name)))
                for name in domains]
        for label, run in zip(labels, runs, strict=True)
    }  # fmt: skip
    starts = [[(_first(run, name) or {}).get("mean") for name in domains] for run in runs]
    same_start = all(
        value is None or first is None or abs(value - first) < 1e-9
        for start in starts[1:]
        for value, first in zip(start, starts[0], strict=True)
    )
    return _compared(scored), same_start


def _compared(scored: dict[str, list[tuple[str, Score | None]]]) -> Comparison:
    return compare_scored(
        {
            label: {domain: (_interval(score), score["scores"]) for domain, score in found if score is not None}
            for label, found in scored.items()
        }
    )


def _interval(score: Score) -> Estimate:
    bounded = score["low"] is not None and score["high"] is not None
    return Estimate(score["mean"], *((score["low"], score["high"]) if bounded else (-math.inf, math.inf)))


def _same_prompts(run: RunData, other: RunData, domain: str) -> bool:
    """Whether two runs held out the same prompts of a domain, by what their configurations say."""
    configs = [
        (
            row_of(one.config.get("evaluation")),
            {**row_of(row_of(one.config.get("domains")).get(domain)), "share": None, "metrics": None},
        )
        for one in (run, other)
    ]
    return configs[0] == configs[1]


def _alone(score: Score | None) -> Score | None:
    """A score that is not compared prompt by prompt."""
    return None if score is None else {**score, "scores": []}


def labels_of_runs(runs: Sequence[RunData]) -> list[str]:
    """A label for each run: its strategy where that tells the runs apart, its name otherwise."""
    strategies = [run.info.get("strategy") for run in runs]
    texts = [value if isinstance(value, str) else "" for value in strategies]
    names = texts if all(texts) and len(set(texts)) == len(texts) else [run.name for run in runs]
    return [
        clean(name, 40) if names.count(name) == 1 else f"{clean(name, 36)} ({i + 1})" for i, name in enumerate(names)
    ]


def _parts(before: Score | None, after: Score | None) -> list[dict[str, Any]]:
    """What every function of the domain's reward gave on average, where it has several, and every metric."""
    found = [{} if score is None else score["parts"] for score in (before, after)]
    return [
        {"part": name, "before": found[0].get(name), "after": found[1].get(name)} for name in {**found[0], **found[1]}
    ]


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
        "scores": [number(value) for value in list_of(row.get("scores"))],
        "parts": {clean(name, 60): number(part) for name, part in row_of(row.get("parts")).items()}
        | {f"metric {clean(name, 60)}": number(one) for name, one in row_of(row.get("metrics")).items()},
        "unscored": int(number(row.get("unscored")) or 0),
        **{key: number(row.get(key)) for key in ("greedy", "prompts", "samples", "completion_length", "truncated")},
    }

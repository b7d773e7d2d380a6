"""The content of the page on a run: what was run, what changed, completions, and what the other files hold."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from counterpoint.masking import masked_command, masked_names
from counterpoint.report._cosines import module_cosines
from counterpoint.report._curves import domain_curves, surgery_curves
from counterpoint.report._detail import LEVELS, Detail
from counterpoint.report._fields import row_of, rows_of
from counterpoint.report._read import RunData
from counterpoint.report._recovery import recovery
from counterpoint.report._text import clean, number
from counterpoint.report.diagnosis import diagnosis
from counterpoint.report.scores import comparison, evaluation, labels_of_runs
from counterpoint.runs.run import total_tokens

Sample = dict[str, Any]

STATUS = {
    "running": "still running, or killed before it could say so",
    "done": "finished",
    "interrupted": "interrupted",
    "failed": "failed",
}


def build(runs: Sequence[RunData], detail: Detail = LEVELS[0]) -> dict[str, Any]:
    """The content of the report on ``runs[0]``, compared with the others, as plain JSON values with cleaned texts."""
    run = runs[0]
    names = domain_names(run)
    domains = names[: detail.domains]
    notes = [note for other in runs for note in _notes(other, runs)]
    if len(names) > len(domains):
        notes.append(f"{len(names) - len(domains)} of {len(names)} domains are left out to keep the page readable.")
    compared, same_start = comparison(runs, domains) or (None, True)
    return {
        "run": overview(run, domains),
        "evaluation": evaluation(runs, domains),
        "comparison": compared,
        "same_start": same_start,
        "labels": labels_of_runs(runs),
        "diagnosis": diagnosis(run.diagnosis, domains, detail),
        "recovery": recovery(run, domains, detail),
        "curves": _curves(runs, domains, detail),
        "surgery": surgery_curves(run, domains, detail),
        "cosines": module_cosines(run.grams, detail),
        "samples": samples(run, domains, detail),
        "configuration": clean(masked_names(run.config_text), 40_000),
        "environment": {clean(key, 60): clean(_plain(value), 2000) for key, value in _facts(run).items()},
        "notes": notes,
    }


def _curves(runs: Sequence[RunData], domains: list[str], detail: Detail) -> list[dict[str, Any]]:
    """The panels of the first run; those of the others, metric by metric, under ``others``."""
    own, *others = [domain_curves(run, domains, detail) for run in runs]
    found = [{panel["metric"]: panel["curves"] for panel in panels} for panels in others]
    return [panel | {"others": [curves.get(panel["metric"], []) for curves in found]} for panel in own]


def _notes(run: RunData, runs: Sequence[RunData]) -> list[str]:
    return [f"{run.name}: {note}" if len(runs) > 1 else note for note in run.notes]


def _facts(run: RunData) -> dict[str, Any]:
    command = run.environment.get("command")
    shown = masked_command([str(part) for part in command]) if isinstance(command, list) else command
    return {**run.environment, "command": shown} if "command" in run.environment else run.environment


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def domain_names(run: RunData) -> list[str]:
    """The run's domains as their files spell them, in the order of the configuration where one is readable."""
    configured = run.config.get("domains")
    listed = run.info.get("domains")
    names: list[str] = [str(name) for name in configured] if isinstance(configured, dict) else []
    if isinstance(listed, list):
        # run.json is the authority on which domains took part, the configuration on their order.
        known = [str(name) for name in listed]
        names = [name for name in names if name in known] + [name for name in known if name not in names]
    if not names:
        names = [str(row["domain"]) for row in (*run.evals, *run.samples) if row.get("domain") is not None]
    return list(dict.fromkeys(names))


def overview(run: RunData, domains: list[str]) -> dict[str, Any]:
    """The facts at the head of the page, every text cleaned."""
    status = str(run.info.get("status", "unknown"))
    steps = [number(row.get("step")) for row in run.metrics]
    last_step = max((int(step) for step in steps if step is not None), default=None)
    planned = number(run.info.get("steps")) or 0
    return {
        "name": run.name,
        "model": _model(run.config),
        "strategy": clean(_strategy(run), 120),
        "domains": [
            {"domain": clean(name, 60), "share": share}
            for name, share in zip(domains, _shares(run.config, domains), strict=True)
        ],
        "steps": last_step,
        "planned_steps": int(planned) if planned > (last_step or 0) else None,
        "status": clean(status, 40),
        "no_signal": clean(run.info.get("no_signal") or "", 1000),
        "status_words": STATUS.get(status, "status unknown"),
        "started": _moment(run.info.get("started")),
        "ended": _moment(run.info.get("ended")),
        "seconds": _elapsed(run),
        "step_seconds": _median(run, "step_seconds", "step_time"),
        "tokens": _tokens(run),
        "completions": _completions(run, last_step),
        "stages": _stages(run),
    }


def _model(config: dict[str, Any]) -> str:
    model = config.get("model")
    if isinstance(model, dict):
        model = next((model[key] for key in ("name", "path", "id") if model.get(key)), None)
    return clean(model, 120) or "unknown model"


def _strategy(run: RunData) -> str:
    strategy = run.info.get("strategy") or run.config.get("strategy")
    if isinstance(strategy, dict):
        return ", ".join(f"{key}: {value}" for key, value in strategy.items())
    return str(strategy) if strategy else "unknown strategy"


def _shares(config: dict[str, Any], domains: list[str]) -> list[float | None]:
    """Every domain's fraction of a step's prompts; None for all when the configuration does not say."""
    configured = config.get("domains")
    if not isinstance(configured, dict) or not all(isinstance(configured.get(name), dict) for name in domains):
        return [None] * len(domains)
    raw = [number(configured[name].get("share", 1.0)) for name in domains]
    known = [share for share in raw if share is not None and share >= 0]
    if len(known) < len(raw) or sum(known) <= 0:
        return [None] * len(domains)
    return [share / sum(known) for share in known]


def _stages(run: RunData) -> list[dict[str, Any]]:
    stages = run.info.get("stages")
    found = []
    for row in stages if isinstance(stages, list) else []:
        if isinstance(row, dict):
            domains = row.get("domains") or row.get("domain")
            names = ", ".join(map(str, domains)) if isinstance(domains, list) else domains
            steps = {key: number(row.get(key)) for key in ("first_step", "last_step")}
            members = [clean(name, 60) for name in domains] if isinstance(domains, list) else [clean(domains, 60)]
            kind = clean(row.get("kind") or "train", 20)
            found.append({"domain": clean(names, 60), "domains": members, "kind": kind, **steps})
    return found


def _seconds(value: object) -> float | None:
    """A moment as Unix seconds: given as such, or in ISO 8601 (without an offset: UTC)."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return number(value)


def _moment(value: object) -> str | None:
    seconds = _seconds(value)
    if seconds is None or not 0 <= seconds < 1e11:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _elapsed(run: RunData) -> float | None:
    started, ended = _seconds(run.info.get("started")), _seconds(run.info.get("ended"))
    times = [time for row in run.metrics if (time := number(row.get("time"))) is not None]
    ended = ended if ended is not None else max(times, default=None)
    if started is None or ended is None:
        return None
    return ended - started


def _tokens(run: RunData) -> float | None:
    """Prompt and completion tokens of all stages."""
    counts = [(number(row.get("stage")), number(row.get("num_tokens"))) for row in run.metrics]
    stages = rows_of(run.info.get("stages"))
    return total_tokens(counts, [(stage.get("kind"), number(stage.get("taken"))) for stage in stages])


def _completions(run: RunData, steps: int | None) -> int | None:
    """Completions that the steps learned from; None where the configuration does not say how many a step has."""
    training = row_of(run.config.get("training"))
    size, updates = number(training.get("per_device_train_batch_size")), number(training.get("num_iterations", 1))
    micro_batches, ranks = number(training.get("gradient_accumulation_steps", 1)), number(run.environment.get("ranks"))
    if not (steps and size and updates and micro_batches):
        return None
    return round(min(steps * size * micro_batches * (ranks or 1) / updates, 1e15))


def _values(run: RunData, *keys: str) -> list[float]:
    """The numbers logged under the first of ``keys`` that a step has."""
    found = (number(next((row[key] for key in keys if key in row), None)) for row in run.metrics)
    return [value for value in found if value is not None]


def _median(run: RunData, *keys: str) -> float | None:
    values = _values(run, *keys)
    return float(np.median(values)) if values else None


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

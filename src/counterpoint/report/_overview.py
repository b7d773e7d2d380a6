"""What was run: model, strategy, domains with their shares, steps, time, status."""

from datetime import UTC, datetime
from typing import Any

import numpy as np

from counterpoint.report._fields import row_of, rows_of
from counterpoint.report._read import RunData
from counterpoint.report._text import clean, number
from counterpoint.runs.run import total_tokens

STATUS = {
    "running": "still running, or killed before it could say so",
    "done": "finished",
    "interrupted": "interrupted",
    "failed": "failed",
}


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

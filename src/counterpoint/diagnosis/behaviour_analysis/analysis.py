"""How a model's behaviour changed over a run: scores, forgetting, rigidity, entropy, length, truncation, diversity.

Reads what the run wrote (``evals.jsonl``, ``metrics.jsonl``, ``samples.jsonl``); no model is loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from counterpoint.diagnosis._chance import bootstrap
from counterpoint.diagnosis.behaviour_analysis.diversity import Diversity, diversities
from counterpoint.diagnosis.behaviour_analysis.scores import (
    Change,
    Forgetting,
    Rigidity,
    forgetting,
    rigidity,
    stage_changes,
)
from counterpoint.diagnosis.whole_run.sentences import behaviour_sentences
from counterpoint.errors import CounterpointError
from counterpoint.runs.run import Run
from counterpoint.runs.stages import Stage
from counterpoint.stats import Estimate

WINDOW = 0.2
"""Share of a stage's steps over which its first and last entropy are averaged."""


@dataclass(frozen=True)
class Score:
    """One evaluation of one domain: mean with 95 % interval, mean length in tokens, share truncated.

    ``moment`` is what people call the step: ``before``, ``after code``. Lengths have no interval, because the run keeps
    no length per prompt.
    """

    domain: str
    step: int
    moment: str
    mean: float
    low: float
    high: float
    prompts: int
    samples: int
    completion_length: float
    truncated: float


@dataclass(frozen=True)
class Entropy:
    """Entropy of the policy on a domain while it was trained, in nats per token: first and last fifth of the stage.

    The interval resamples the steps of the fifth: it covers the choice of prompts, not another training seed.
    """

    domain: str
    stage: int
    steps: int
    first: Estimate
    last: Estimate


@dataclass(frozen=True)
class Behaviour:
    """Everything ``behaviour`` finds.

    ``sentences`` say of every domain whether it was forgotten or rigid, ``notes`` what cannot be told at all.
    """

    run: str
    domains: tuple[str, ...]
    stages: tuple[Stage, ...]
    scores: tuple[Score, ...]
    changes: tuple[Change, ...]
    forgetting: tuple[Forgetting, ...]
    rigidity: tuple[Rigidity, ...]
    entropy: tuple[Entropy, ...]
    diversity: tuple[Diversity, ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]


def behaviour(
    run: Path | str,
    alone: Mapping[str, Path | str] | None = None,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Behaviour:
    """How every domain behaved over ``run``, with what is beyond noise flagged.

    Args:
        run: a run directory, finished or not.
        alone: for a domain, a run that trains it alone from the same model with as many steps as its stage here has.
            Without one, rigidity of that domain cannot be told.
        on_progress: called with what is being read, how much of it is done, and how much there is.

    Raises:
        RunError: no run, or no evaluation in it.
        CounterpointError: ``alone`` names a domain that the run does not have.
    """
    history = Run.open(run)
    _check_domains(history, alone or {})
    others = {}
    for i, (domain, path) in enumerate((alone or {}).items(), 1):
        others[domain] = Run.open(path)
        on_progress("runs alone", i, len(alone or {}))
    changes = stage_changes(history)
    forgotten, rigid = forgetting(history, changes), rigidity(history, others)
    result = Behaviour(
        run=history.name,
        domains=history.domains,
        stages=history.stages,
        scores=tuple(_score(history, domain, step) for step in history.steps for domain in history.domains),
        changes=tuple(changes),
        forgetting=tuple(forgotten),
        rigidity=tuple(rigid),
        entropy=tuple(_entropies(history)),
        diversity=tuple(diversities(_completions(history))),
        sentences=behaviour_sentences(forgotten, rigid),
        notes=_notes(history),
    )
    on_progress("behaviour", 1, 1)
    return result


def _check_domains(history: Run, alone: Mapping[str, Path | str]) -> None:
    for name in alone:
        if name not in history.domains:
            raise CounterpointError(
                f"--alone {name}: the run {history.name} has no such domain. It has {', '.join(history.domains)}."
            )


def _score(history: Run, domain: str, step: int) -> Score:
    line = history.evaluations[domain, step]
    numbers = ("mean", "low", "high", "prompts", "samples", "completion_length", "truncated")
    return Score(domain, step, history.moment(step), **{key: line[key] for key in numbers})


def _entropies(history: Run) -> list[Entropy]:
    found = []
    for stage in history.stages:
        rows = [row for row in history.metrics if stage.first_step < row["step"] <= stage.last_step]
        for domain in stage.domains:
            key = f"entropy/{domain}"
            values = [row[key] for row in rows if row.get(key) is not None]
            if values:
                window = max(1, round(WINDOW * len(values)))
                first, last = _mean(values[:window]), _mean(values[-window:])
                found.append(Entropy(domain, stage.index, len(values), first, last))
    return found


def _mean(values: list[float]) -> Estimate:
    return bootstrap(torch.tensor(values, dtype=torch.float64), lambda resamples: resamples.mean(1))


def _completions(history: Run) -> dict[tuple[str, int], dict[str, str]]:
    found: dict[tuple[str, int], dict[str, str]] = {}
    for line in history.samples:
        found.setdefault((line["domain"], line["step"]), {})[str(line["prompt"])] = str(line["completion"])
    return found


def _notes(history: Run) -> tuple[str, ...]:
    notes = []
    if len(history.stages) < 2:
        notes.append("Forgetting and rigidity cannot be told: without two stages no domain was trained before another.")
    if 0 not in history.steps and history.stages:
        notes.append("What the first stage changed cannot be told: the run has no evaluation before training.")
    silent = [d for s in history.stages for d in s.domains if not any(f"entropy/{d}" in row for row in history.metrics)]
    if silent:
        notes.append(f"metrics.jsonl holds no entropy of {', '.join(silent)}.")
    return tuple(notes)

"""How a model's behaviour changed over a run: scores, forgetting, rigidity, entropy, length, truncation, diversity.

Reads what the run wrote (``evals.jsonl``, ``metrics.jsonl``, ``samples.jsonl``); no model is loaded. Scores are
compared in pairs by prompt. ``change`` has the 95 % interval; ``corrected`` the simultaneous one, at ``1 - 0.05 / m``
for the m comparisons of its kind (Bonferroni), and it alone decides the verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from counterpoint.diagnosis._chance import bootstrap
from counterpoint.diagnosis._diversity import Diversity, diversities
from counterpoint.diagnosis._words import gained, in_points, listed, lost, not_excluded, signed
from counterpoint.errors import CounterpointError
from counterpoint.results import Result
from counterpoint.runs.run import Run, Since, changes_of
from counterpoint.runs.stages import Stage
from counterpoint.stats import Estimate, Scores
from counterpoint.tables import Table

NOISE = "within noise"

UNKNOWN = "not measured: "
"""Begins the verdict on what the run does not allow to judge; the reason follows."""

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
class Change:
    """How the held-out score of ``domain`` changed over a stage, from ``first_step`` to ``last_step``.

    ``during`` are the domains that the stage trained, ``stage`` is its name (``code``, ``refresh of math``) and
    ``role`` what the domain was there: trained in it (``own``), trained before it (``earlier``), or ``not yet``
    trained. ``verdict`` is ``rose``, ``fell`` or ``within noise``.
    """

    domain: str
    during: tuple[str, ...]
    stage: str
    role: str
    first_step: int
    last_step: int
    prompts: int
    change: Estimate
    corrected: Estimate
    verdict: str


@dataclass(frozen=True)
class Forgetting(Since):
    """What became of ``domain`` from the end of its own stage to the end of a later one.

    ``verdict`` is ``forgetting`` (it rose in its stage and fell afterwards), ``fell`` (it fell without having risen),
    ``gained`` or ``within noise``.
    """

    verdict: str


@dataclass(frozen=True)
class Rigidity:
    """Whether ``domain`` learned less in its stage after ``after`` than alone from the base, in as many steps.

    ``gain`` is the change within its stage; ``difference`` is that minus the change within the run alone, ``level`` the
    score reached minus the score reached alone (both None where not measured).
    ``verdict``: ``rigidity`` where both lie below zero, ``within noise``, ``learned more`` where both lie above,
    ``mixed`` where they disagree beyond noise, or ``not measured: ...``.
    """

    domain: str
    after: tuple[str, ...]
    gain: Estimate
    difference: Estimate | None
    level: Estimate | None
    verdict: str


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
class Behaviour(Result):
    """Everything that ``behaviour`` finds; ``notes`` say what could not be measured and what it would take."""

    kind: ClassVar[str] = "behaviour"

    run: str
    domains: tuple[str, ...]
    scores: tuple[Score, ...]
    changes: tuple[Change, ...]
    forgetting: tuple[Forgetting, ...]
    rigidity: tuple[Rigidity, ...]
    entropy: tuple[Entropy, ...]
    diversity: tuple[Diversity, ...]
    notes: tuple[str, ...]

    def tables(self) -> list[Table]:
        """Every domain's change over every stage, and the first and last evaluation of every domain."""
        return [table for table in (changes_table(self.domains, self.changes), _course_table(self)) if table.rows]

    def sentences(self) -> tuple[str, ...]:
        """What fell, was forgotten or learned less than alone, and what could not be measured."""
        return (*self.verdicts(), *self.notes)

    def verdicts(self) -> tuple[str, ...]:
        """One sentence for every fall outside of later stages, every domain's forgetting, and every rigidity judged."""
        return (
            *(_collapse(item) for item in self.changes if item.verdict == "fell" and item.role != "earlier"),
            *(_forgotten(item) for item in _worst_of_each(self.forgetting)),
            *(_rigid(item) for item in self.rigidity if item.difference and item.level),
        )

    def change(self, domain: str, first_step: int) -> Change | None:
        """The change of ``domain`` over the stage that began after ``first_step``; None where it was not evaluated."""
        return next((c for c in self.changes if (c.domain, c.first_step) == (domain, first_step)), None)


def behaviour(run: Path | str | Run, alone: Mapping[str, Path | str] | None = None) -> Behaviour:
    """How every domain behaved over ``run``, with what is beyond noise flagged.

    Args:
        run: a run directory, finished or not.
        alone: for a domain, a run that trains it alone from the same model with as many steps as its stage here has.
            Rigidity of a domain is not measured without one.

    Raises:
        RunError: no run, or no evaluation in it.
        CounterpointError: ``alone`` names a domain that the run does not have.
    """
    history = Run.open(run)
    for name in alone or ():
        if name not in history.domains:
            raise CounterpointError(
                f"alone={name!r}: the run {history.name} has no such domain. It has {', '.join(history.domains)}."
            )
    changes = stage_changes(history)
    rigid = rigidity(history, {domain: Run.open(path) for domain, path in (alone or {}).items()})
    return Behaviour(
        run=history.name,
        domains=history.domains,
        scores=tuple(_score(history, domain, step) for step in history.steps for domain in history.domains),
        changes=tuple(changes),
        forgetting=tuple(forgetting(history, changes)),
        rigidity=tuple(rigid),
        entropy=tuple(_entropies(history)),
        diversity=tuple(diversities(_completions(history))),
        notes=_notes(history, rigid),
    )


def stage_name(stage: Stage) -> str:
    """What a stage is called: ``code``, ``code, math`` or ``refresh of math``."""
    names = ", ".join(stage.domains)
    return f"refresh of {names}" if stage.kind == "refresh" else names


def stage_changes(history: Run) -> list[Change]:
    """Every domain's change over every stage that has an evaluation at both ends."""
    cells = [
        (domain, stage)
        for stage in history.stages
        for domain in history.domains
        if history.scores(domain, stage.first_step) is not None and history.scores(domain, stage.last_step) is not None
    ]
    return [_change(history, domain, stage, len(cells)) for domain, stage in cells]


def _change(history: Run, domain: str, stage: Stage, comparisons: int) -> Change:
    before, after = (history.known_scores(domain, step) for step in (stage.first_step, stage.last_step))
    plain, corrected = changes_of(before, after, comparisons)
    trained = any(domain in other.domains for other in history.stages[: stage.index])
    return Change(
        domain=domain,
        during=stage.domains,
        stage=stage_name(stage),
        role="own" if domain in stage.domains else "earlier" if trained else "not yet",
        first_step=stage.first_step,
        last_step=stage.last_step,
        prompts=len(before),
        change=plain,
        corrected=corrected,
        verdict=_direction(corrected),
    )


def forgetting(history: Run, changes: Sequence[Change]) -> list[Forgetting]:
    """What later stages did to every domain after its own stage, stage by stage from there.

    A refresh is no stage of its domain's own: a watched run's fall counts from before it.
    """
    ends = {name: stage.last_step for name in history.domains if (stage := history.own_stage(name)) is not None}
    own = {change.domain: change for change in changes if change.last_step == ends.get(change.domain)}
    return [_forgetting(one, own[one.domain]) for one in history.since_own_stage if one.domain in own]


def _forgetting(one: Since, learned: Change) -> Forgetting:
    direction = _direction(one.corrected)
    verdict = {"rose": "gained", "fell": "forgetting" if learned.verdict == "rose" else "fell"}.get(direction, NOISE)
    return Forgetting(**vars(one), verdict=verdict)


def rigidity(history: Run, alone: Mapping[str, Run]) -> list[Rigidity]:
    """Every domain that was trained after another one, compared with its run alone where ``alone`` has one."""
    later = [
        (stage, stage.domains[0])
        for stage in history.stages
        if stage.index > 0
        and stage.kind == "train"
        and len(stage.domains) == 1
        and all(history.scores(stage.domains[0], step) is not None for step in (stage.first_step, stage.last_step))
    ]
    count = max(1, sum(domain in alone for _, domain in later))
    return [_rigidity(history, stage, domain, alone.get(domain), count) for stage, domain in later]


def _rigidity(history: Run, stage: Stage, domain: str, alone: Run | None, comparisons: int) -> Rigidity:
    after = tuple(dict.fromkeys(name for s in history.stages[: stage.index] for name in s.domains))
    before, reached = history.known_scores(domain, stage.first_step), history.known_scores(domain, stage.last_step)
    gain = changes_of(before, reached, 1)[0]
    steps = stage.last_step - stage.first_step
    reason = _no_comparison(domain, steps, history.scores(domain, 0), alone)
    if reason or alone is None:
        return Rigidity(domain, after, gain, None, None, UNKNOWN + reason)
    alone_before, alone_reached = alone.known_scores(domain, 0), alone.known_scores(domain, steps)
    gains = [_gains(before, reached), _gains(alone_before, alone_reached)]
    difference = _doubled(changes_of(gains[1], gains[0], comparisons)[1])
    level = changes_of(alone_reached, reached, comparisons)[1]
    verdict = _rigidity_verdict(_direction(difference), _direction(level))
    return Rigidity(domain, after, gain, difference, level, verdict)


def _no_comparison(domain: str, steps: int, base: Scores | None, alone: Run | None) -> str:
    """Why ``alone`` says nothing about ``domain``; empty where it does."""
    if alone is None:
        return f"no run trains {domain} alone from the same model (alone)."
    start, end = alone.scores(domain, 0), alone.scores(domain, steps)
    if any(stage.domains != (domain,) for stage in alone.stages if stage.first_step < steps):
        return f"the run {alone.name} does not train {domain} alone."
    if start is None or base is None:
        return f"{domain} was not evaluated before training (evaluation.before) in both runs."
    if end is None:
        return (
            f"the run {alone.name} has no evaluation of {domain} after {steps} steps, as many as the stage has. Train "
            f"it with training.max_steps {steps}, or with an evaluation.every that divides {steps}."
        )
    if len(start) != len(base):
        return f"the run {alone.name} scores {len(start)} prompts and this one {len(base)}. Use one evaluation.prompts."
    if _direction(changes_of(base, start, 1)[0]) != NOISE:
        return f"the run {alone.name} does not start from the same scores, so it started from another model."
    return ""


def _rigidity_verdict(difference: str, level: str) -> str:
    if {difference, level} == {"fell", "rose"}:
        return "mixed"
    if difference == level == "fell":
        return "rigidity"
    return "learned more" if difference == level == "rose" else NOISE


def _gains(before: Scores, after: Scores) -> list[float | None]:
    """Gains of scores in [0, 1], which lie in [-1, 1], moved into [0, 1]; None where a prompt lacks a score."""
    return [None if a is None or b is None else (b - a + 1) / 2 for a, b in zip(before, after, strict=True)]


def _doubled(estimate: Estimate) -> Estimate:
    return Estimate(2 * estimate.value, 2 * estimate.low, 2 * estimate.high)


def _direction(estimate: Estimate) -> str:
    if estimate.high < 0:
        return "fell"
    return "rose" if estimate.low > 0 else NOISE


def _score(history: Run, domain: str, step: int) -> Score:
    line = history.evaluations[domain, step]
    numbers = ("mean", "low", "high", "prompts", "samples", "completion_length", "truncated")
    return Score(domain, step, history.moment(step), **{key: line[key] for key in numbers})


def _entropies(history: Run) -> list[Entropy]:
    found = []
    for stage in history.stages:
        rows = [row for row in history.metrics if stage.first_step < row["step"] <= stage.last_step]
        for domain in stage.domains:
            values = [value for row in rows if (value := row.get(f"entropy/{domain}")) is not None]
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


def _notes(history: Run, rigid: Sequence[Rigidity]) -> tuple[str, ...]:
    notes = []
    if len(history.stages) < 2:
        notes.append("Forgetting and rigidity: not measured (they need two stages, one after the other).")
    if 0 not in history.steps and history.stages:
        notes.append("The first stage's changes: not measured (train with evaluation.before: true).")
    unknown = [item for item in rigid if item.verdict.startswith(UNKNOWN)]
    lonely = [item.domain for item in unknown if item.verdict.endswith("(alone).")]
    if lonely:
        notes.append(f"Rigidity of {listed(lonely)}: not measured (give a run that trains each alone).")
    notes += [f"Rigidity of {item.domain}: {item.verdict}" for item in unknown if not item.verdict.endswith("(alone).")]
    silent = [d for s in history.stages for d in s.domains if not any(f"entropy/{d}" in row for row in history.metrics)]
    if silent and history.metrics:
        notes.append(f"Entropy of {listed(silent)}: not measured (metrics.jsonl holds none).")
    return tuple(notes)


def changes_table(domains: Sequence[str], changes: Sequence[Change]) -> Table:
    """Domain by stage: the change in points, with the interval that holds for all cells at once."""
    stages = list(dict.fromkeys((item.first_step, item.stage) for item in changes))
    cells = {(item.domain, item.first_step): in_points(item.corrected) for item in changes}
    rows = tuple((name, *(cells.get((name, first)) for first, _ in stages)) for name in domains)
    names = _distinct([name if name.startswith("refresh") else f"while {name}" for _, name in stages])
    beyond = [f"{item.domain} {item.verdict} in {item.stage}" for item in changes if item.verdict != NOISE]
    return Table(
        "Change of the held-out score over each stage, in points",
        ("domain", *names),
        rows if stages else (),
        dict.fromkeys(names, "+.0f"),
        f"Intervals hold for all {len(changes)} cells at once. Beyond noise: {', '.join(beyond) or 'none'}.",
    )


def _course_table(found: Behaviour) -> Table:
    entropies = {entropy.domain: entropy for entropy in found.entropy}
    rows = []
    for domain in found.domains:
        scores = [score for score in found.scores if score.domain == domain]
        bigrams = [item.distinct for item in found.diversity if item.domain == domain]
        entropy = entropies.get(domain)
        pairs = [
            _course([score.mean for score in scores], ".2f"),
            _course([score.completion_length for score in scores], ".1f"),
            _course([score.truncated for score in scores], ".1%"),
            _course(bigrams, ".2f"),
            _course([entropy.first.value, entropy.last.value] if entropy else [], ".2f"),
        ]
        rows.append((domain, *pairs))
    columns = ("domain", "score", "tokens", "truncated", "distinct bigrams", "entropy in its stage")
    return Table("First and last evaluation", columns, tuple(rows))


def _course(values: Sequence[float], form: str) -> str | None:
    return f"{values[0]:{form}} \u2192 {values[-1]:{form}}" if values else None


def _worst_of_each(forgotten: Sequence[Forgetting]) -> list[Forgetting]:
    """Of every domain the last stage after which it was below its own stage; else the last stage."""
    last = {item.domain: item for item in forgotten}
    return list((last | {item.domain: item for item in forgotten if item.verdict in ("forgetting", "fell")}).values())


def _collapse(item: Change) -> str:
    amount = f"{item.domain} lost {lost(item.corrected)}"
    if item.role == "own":
        return f"{amount} in its own stage ({item.stage}). Lower training.learning_rate, or stop the stage earlier."
    return f"{amount} in the stage {item.stage}, before any stage of its own."


def _forgotten(item: Forgetting) -> str:
    since = f"since its own stage ({listed(item.since)} trained since)"
    if item.verdict in ("forgetting", "fell"):
        why = "forgetting" if item.verdict == "forgetting" else "it had not risen in its own stage"
        return f"{item.domain} lost {lost(item.corrected)} {since}: {why}."
    if item.verdict == "gained":
        return f"{item.domain} gained {gained(item.corrected)} {since}."
    return f"{item.domain} changed by {signed(item.corrected)} {since}: {not_excluded(item.corrected)}."


def _rigid(item: Rigidity) -> str:
    assert item.difference, "unknown rigidity is in the notes"
    assert item.level, "measured where the difference is"
    return (
        f"{item.domain} after {listed(item.after)}: {signed(item.difference)} more gained than alone, "
        f"{signed(item.level)} above the level alone: {item.verdict}."
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Equal names numbered: a table's columns are told apart by name."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)
    ]

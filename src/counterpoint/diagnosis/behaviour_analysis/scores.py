"""Changes of held-out scores: what every stage did to every domain, forgetting, and rigidity. Pure functions.

All differences are paired by prompt. ``change`` has the 95 % interval; ``corrected`` the simultaneous one, at
``1 - 0.05 / m`` for the m comparisons of its table (Bonferroni), and it alone decides the verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from counterpoint.diagnosis.whole_run.sentences import UNKNOWN
from counterpoint.runs.run import LEVEL, Run, Since
from counterpoint.runs.stages import Stage
from counterpoint.stats import Estimate, Scores, difference_interval

NOISE = "within noise"


@dataclass(frozen=True)
class Change:
    """How the held-out score of ``domain`` changed while ``during`` was trained, from ``first_step`` to ``last_step``.

    ``verdict`` is ``rose``, ``fell`` or ``within noise``.
    """

    domain: str
    during: tuple[str, ...]
    first_step: int
    last_step: int
    prompts: int
    change: Estimate
    corrected: Estimate
    verdict: str


@dataclass(frozen=True)
class Forgetting:
    """What became of ``domain`` from the end of its own stage to the end of a later one.

    ``learned`` is the change in its own stage. ``since`` names the domains trained in between. ``verdict`` is
    ``forgetting`` (it rose in its stage and fell afterwards), ``fell`` (it fell without having risen), ``gained`` or
    ``within noise``.
    """

    domain: str
    since: tuple[str, ...]
    first_step: int
    last_step: int
    learned: Change
    change: Estimate
    corrected: Estimate
    verdict: str


@dataclass(frozen=True)
class Rigidity:
    """Whether ``domain`` learned less in its stage after ``after`` than alone from the base, in as many steps.

    ``gain`` and ``gain_alone`` are the changes within its stage and within the run alone; ``difference`` is the first
    minus the second, ``level`` the score reached minus the score reached alone (both None where it cannot be told).
    ``verdict``: ``rigidity`` where both lie below zero, ``within noise``, ``learned more`` where both lie above,
    ``mixed`` where they disagree beyond noise, or ``cannot be told: ...``.
    """

    domain: str
    after: tuple[str, ...]
    gain: Estimate
    gain_alone: Estimate | None
    difference: Estimate | None
    level: Estimate | None
    verdict: str


def stage_changes(history: Run) -> list[Change]:
    """Every domain's change over every stage that has an evaluation at both ends."""
    cells = [
        (domain, stage)
        for stage in history.stages
        for domain in history.domains
        if history.scores(domain, stage.first_step) is not None and history.scores(domain, stage.last_step) is not None
    ]
    return [
        _change(history, domain, stage.domains, stage.first_step, stage.last_step, len(cells))
        for domain, stage in cells
    ]


def forgetting(history: Run, changes: Sequence[Change]) -> list[Forgetting]:
    """What later stages did to every domain after its own stage, stage by stage from there.

    A refresh is no stage of its domain's own: a watched run's fall counts from before it.
    """
    ends = {name: stage.last_step for name in history.domains if (stage := history.own_stage(name)) is not None}
    own = {change.domain: change for change in changes if change.last_step == ends.get(change.domain)}
    return [_forgetting(one, own[one.domain]) for one in history.since_own_stage if one.domain in own]


def _forgetting(one: Since, learned: Change) -> Forgetting:
    verdict = _forgetting_verdict(learned.verdict, _direction(one.corrected))
    return Forgetting(one.domain, one.since, one.first_step, one.last_step, learned, one.change, one.corrected, verdict)


def rigidity(history: Run, alone: dict[str, Run]) -> list[Rigidity]:
    """Every domain that was trained after another one, beside its run alone where ``alone`` has one."""
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


def _forgetting_verdict(learned: str, since: str) -> str:
    if since == "fell":
        return "forgetting" if learned == "rose" else "fell"
    return "gained" if since == "rose" else NOISE


def _change(history: Run, domain: str, during: tuple[str, ...], first: int, last: int, comparisons: int) -> Change:
    before, after = history.known_scores(domain, first), history.known_scores(domain, last)
    plain, corrected = _intervals(before, after, comparisons)
    return Change(domain, during, first, last, len(before), plain, corrected, _direction(corrected))


def _rigidity(history: Run, stage: Stage, domain: str, alone: Run | None, comparisons: int) -> Rigidity:
    after = tuple(dict.fromkeys(name for s in history.stages[: stage.index] for name in s.domains))
    before, reached = history.known_scores(domain, stage.first_step), history.known_scores(domain, stage.last_step)
    base = history.scores(domain, 0)
    gain = _intervals(before, reached, 1)[0]
    steps = stage.last_step - stage.first_step
    reason = _no_comparison(domain, steps, base, alone)
    if reason or alone is None:
        return Rigidity(domain, after, gain, None, None, None, UNKNOWN + reason)
    alone_before, alone_reached = alone.known_scores(domain, 0), alone.known_scores(domain, steps)
    gains = [_gains(before, reached), _gains(alone_before, alone_reached)]
    difference = [_doubled(e) for e in _intervals(gains[1], gains[0], comparisons)]
    level = _intervals(alone_reached, reached, comparisons)
    verdict = _rigidity_verdict(_direction(difference[1]), _direction(level[1]))
    alone_gain = _intervals(alone_before, alone_reached, 1)[0]
    return Rigidity(domain, after, gain, alone_gain, difference[1], level[1], verdict)


def _no_comparison(domain: str, steps: int, base: Scores | None, alone: Run | None) -> str:
    """Why ``alone`` says nothing about ``domain``; empty where it does."""
    if alone is None:
        return f"no run trains {domain} alone from the same model (give one with --alone {domain}=RUN)."
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
    if _direction(_intervals(base, start, 1)[0]) != NOISE:
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


def _intervals(before: Scores, after: Scores, comparisons: int) -> tuple[Estimate, Estimate]:
    """The change with its 95 % interval, and with the one that holds for all comparisons at once."""
    plain, corrected = (difference_interval(before, after, 1 - LEVEL / m) for m in (1, comparisons))
    return plain, corrected


def _direction(estimate: Estimate) -> str:
    if estimate.high < 0:
        return "fell"
    return "rose" if estimate.low > 0 else NOISE

"""From the files of a study's jobs to its result."""

import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.errors import RunError
from counterpoint.runs import environment
from counterpoint.runs.records import TimedScoreLine, read_lines
from counterpoint.runs.run import Run
from counterpoint.stats import Estimate, mean_of_independent
from counterpoint.study.jobs import Job, JobRecord, StudyFolder, plan_jobs
from counterpoint.study.load import Study, is_shown_only
from counterpoint.study.results import Cost, Failure, Planned, RowResult, Score, StudyResult, Worst
from counterpoint.study.schema import (
    AVERAGE,
    STARVED,
    WORST,
    BaseRow,
    Contrast,
    ExpertsRow,
    GivenRow,
    MergeRow,
    RefreshRow,
    RollbackRow,
    Row,
)
from counterpoint.study.statistics import (
    LEVEL,
    POWER,
    change_over_seeds,
    decide,
    mcnemar_p,
    power,
    score_over_seeds,
    seeds_for,
    standard_deviation,
)
from counterpoint.study.steps import REFRESH, SCORES

ASSUMED_SPREAD = 0.02
"""Standard deviation over seeds of a paired difference of averages where none is known; 0.009 to 0.031 on pocket."""


@dataclass(frozen=True)
class Outcome:
    """The scores of one job by domain, with their intervals over prompts, and what it cost.

    ``own_stage`` has, for a run of several stages, what each domain had right after its own one, where others followed.
    """

    scores: dict[str, Estimate]
    cost: Cost
    own_stage: dict[str, float] = field(default_factory=dict)

    def value(self, measure: str, starved: float | None = None) -> float:
        """A domain's score, their mean, the lowest of them, or whether (1 or 0) that is below ``starved``."""
        means = {name: score.value for name, score in self.scores.items()}
        if measure == STARVED:
            assert starved is not None
            return float(min(means.values()) < starved)
        if measure == AVERAGE:
            return statistics.fmean(means.values())
        return min(means.values()) if measure == WORST else means[measure]


Outcomes = dict[int | None, Outcome]
"""Seed -> what the row reached with it; None for a row that is one model for all seeds."""


def summarize(study: Study, folder: StudyFolder) -> StudyResult:
    """The result of what is done so far.

    Raises:
        RunError: files of a run that is done are gone or damaged.
    """
    jobs = plan_jobs(study, folder.runs)
    records = {job.id: record for job in jobs if (record := folder.record(job.id)) is not None}
    done = {job.id: job for job in jobs if job.id in records and records[job.id].status == "done"}
    outcomes = {name: _outcome(job, records[name], folder) for name, job in done.items()}
    by_row = {name: _by_seed(study, name, jobs, outcomes) for name in study.rows}
    rows = [_row(study, name, by_row, [r for r in records.values() if r.row == name]) for name in study.rows]
    contrasts = _contrasts(study, by_row)
    config = study.config
    return StudyResult(
        name=config.name,
        reference=config.reference,
        seeds=config.seeds,
        domains=study.domains,
        worth=config.worth,
        verdicts=tuple(contrast.sentence(config.reference, config.worth) for contrast in contrasts),
        contrasts=tuple(contrasts),
        rows=tuple(rows),
        notes=tuple(_notes(study, rows, folder.plan())),
        spreads=_spreads(study, by_row),
        starved=config.starved,
        settings=settings_of(study),
        environment=environment() | {"parallel": config.parallel},
    )


# What one job reached


def _outcome(job: Job, record: JobRecord, folder: StudyFolder) -> Outcome:
    run = folder.run(job.id)
    if job.trains:
        return _of_run(Run.open(run), list(job.config.domains))
    path, record_file = run / SCORES, folder.path / "jobs" / f"{job.id}.json"
    if not path.is_file():
        raise RunError(f"{path}: is gone. Remove {record_file}, and the job runs again.")
    lines = read_lines(path, TimedScoreLine, f"Remove the file and {record_file}, and the job runs again.")
    found = {line["domain"]: line for line in lines}
    evaluating = sum(line["seconds"] for line in lines)
    return Outcome(_scores(found, list(job.config.domains), path), _made_cost(run, record, evaluating))


def _of_run(run: Run, domains: Sequence[str]) -> Outcome:
    end = max((stage.last_step for stage in run.stages), default=0)
    after = {name: line for (name, step), line in run.evaluations.items() if step == end}
    own = {name: stage for name in domains if (stage := run.own_stage(name)) is not None and len(stage.domains) == 1}
    own_stage = {
        name: float(run.evaluations[name, stage.last_step]["mean"])
        for name, stage in own.items()
        if stage.last_step < end and (name, stage.last_step) in run.evaluations
    }
    return Outcome(_scores(after, domains, run.path), _trained_cost(run), own_stage)


def _scores(lines: Mapping[str, Mapping[str, Any]], domains: Sequence[str], where: Path) -> dict[str, Estimate]:
    if missing := [name for name in domains if name not in lines]:
        raise RunError(f"{where}: has no evaluation of {', '.join(missing)}. Remove the job's record to run it again.")
    return {name: Estimate(lines[name]["mean"], lines[name]["low"], lines[name]["high"]) for name in domains}


def _trained_cost(run: Run) -> Cost:
    return Cost(len(run.metrics), run.tokens or 0.0, sum(line.get("step_time") or 0.0 for line in run.metrics))


def _made_cost(run: Path, record: JobRecord, evaluating: float) -> Cost:
    if (run / REFRESH).is_file() and (run / "run.json").is_file():
        return _trained_cost(Run.open(run))
    made = record.settings.get("kind") not in ("base", "given")
    return Cost(0, 0, max(0.0, record.seconds - evaluating) if made else 0.0)


# What one row reached


def _by_seed(study: Study, name: str, jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> Outcomes:
    """The outcomes of one row by seed; of experts only seeds of which every expert is done."""
    own = [job for job in jobs if job.row == name]
    if isinstance(study.rows[name], ExpertsRow):
        return _experts(study, study.seeds(name), own, outcomes)
    return {job.seed: _with_needs(job, outcomes[job.id], outcomes) for job in own if job.id in outcomes}


def _experts(study: Study, seeds: Sequence[int], jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> Outcomes:
    """Each domain's score is that of its own expert; together they are one outcome."""
    joined: Outcomes = {}
    for seed in seeds:
        own = {job.domain: outcomes[job.id] for job in jobs if job.seed == seed and job.id in outcomes}
        if set(own) == set(study.domains):
            cost = sum((outcome.cost for outcome in own.values()), Cost(0, 0, 0))
            joined[seed] = Outcome({name: own[name].scores[name] for name in study.domains}, cost)
    return joined


def _with_needs(job: Job, outcome: Outcome, outcomes: Mapping[str, Outcome]) -> Outcome:
    """A model made of others costs what they cost besides."""
    cost = sum((outcomes[need].cost for need in job.needs if need in outcomes), outcome.cost)
    return dataclasses.replace(outcome, cost=cost)


def _row(study: Study, name: str, by_row: Mapping[str, Outcomes], records: Sequence[JobRecord]) -> RowResult:
    row, found, reference = study.rows[name], by_row[name], study.config.reference
    failures = (
        Failure(r.seed, f"{r.domain}: {r.reason}" if r.domain else r.reason) for r in records if r.status == "failed"
    )
    of = getattr(row, "of", None)
    start = RowResult(
        name,
        getattr(row, "kind", "train"),
        row.description or _described(row),
        tuple(seed for seed in found if seed is not None),
        tuple(failures),
        0 if is_shown_only(row) else len(study.seeds(name)),
        of=of,
    )
    if not found:
        return start
    costs = [outcome.cost for outcome in found.values()]
    return dataclasses.replace(
        start,
        scores=_scores_once(study, found[None]) if None in found else _scores_by_seed(study, found),
        difference=_changes(study, found, by_row[reference]) if name in study.compared else None,
        difference_of=_changes(study, found, by_row[of]) if of is not None else None,
        worst=None if None in found else _worst(study, found, by_row[reference] if name in study.compared else {}),
        forgetting=_forgetting(study, found),
        rigidity=_rigidity(study, found, by_row),
        cost=Cost(
            statistics.fmean(cost.steps for cost in costs),
            statistics.fmean(cost.tokens for cost in costs),
            statistics.median(cost.seconds for cost in costs),
        ),
    )


def _described(row: Row) -> str:
    """A few words for a row whose file has none."""
    match row:
        case ExpertsRow():
            return "each domain by its own model"
        case MergeRow():
            return f"{row.of} merged by {row.method.replace('_', ' ')}"
        case RefreshRow() | RollbackRow():
            return f"{row.of}, then {row.kind} of {row.domain}"
        case BaseRow():
            return "the untouched model"
        case GivenRow():
            return f"given: {row.path}" if isinstance(row.path, str) else "given checkpoints, one per seed"
    return ""


def _scores_by_seed(study: Study, found: Outcomes) -> dict[str, Score]:
    values = {key: tuple(o.value(key) for o in found.values()) for key in (*study.domains, AVERAGE)}
    return {key: Score(score_over_seeds(listed), listed) for key, listed in values.items()}


def _scores_once(study: Study, outcome: Outcome) -> dict[str, Score]:
    means = outcome.scores | {AVERAGE: mean_of_independent([outcome.scores[name] for name in study.domains])}
    return {key: Score(mean, (mean.value,)) for key, mean in means.items()}


def _paired(
    found: Outcomes, reference: Outcomes, measure: str, starved: float | None = None
) -> tuple[list[float], list[float]]:
    """The reference's and the row's values of the seeds that both have."""
    common = _common(found, reference)
    before, after = ([side[seed].value(measure, starved) for seed in common] for side in (reference, found))
    return before, after


def _worst(study: Study, found: Outcomes, reference: Outcomes) -> Worst:
    values = tuple(outcome.value(WORST) for outcome in found.values())
    change = change_over_seeds(*_paired(found, reference, WORST)) if len(_common(found, reference)) > 1 else None
    level = study.config.starved
    if level is None:
        return Worst(Score(score_over_seeds(values), values), change)
    pair = _paired(found, reference, STARVED, level)
    p = mcnemar_p(*pair) if pair[0] else None
    return Worst(Score(score_over_seeds(values), values), change, sum(value < level for value in values), p)


def _common(found: Outcomes, reference: Outcomes) -> list[int | None]:
    return [seed for seed in found if seed in reference]


def _changes(study: Study, found: Outcomes, reference: Outcomes) -> dict[str, Estimate] | None:
    pairs = {key: _paired(found, reference, key) for key in (*study.domains, AVERAGE)}
    return {key: change_over_seeds(*pair) for key, pair in pairs.items() if len(pair[0]) > 1} or None


def _forgetting(study: Study, found: Outcomes) -> dict[str, Estimate] | None:
    """What each domain had after its own stage, less what it has at the end."""
    return _differences(
        {
            name: [(o.scores[name].value, o.own_stage[name]) for o in found.values() if name in o.own_stage]
            for name in study.domains
        }
    )


def _rigidity(study: Study, found: Outcomes, by_row: Mapping[str, Outcomes]) -> dict[str, Estimate] | None:
    """What an expert of the same seed reaches, less what the domain had after its own stage."""
    experts = next((by_row[name] for name, row in study.rows.items() if isinstance(row, ExpertsRow)), {})
    return _differences(
        {
            name: [
                (outcome.own_stage[name], experts[seed].scores[name].value)
                for seed, outcome in found.items()
                if seed in experts and name in outcome.own_stage
            ]
            for name in study.domains
        }
    )


def _differences(pairs: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, Estimate] | None:
    return {
        name: change_over_seeds([a for a, _ in listed], [b for _, b in listed])
        for name, listed in pairs.items()
        if listed
    } or None


# What the study says


def _contrasts(study: Study, by_row: Mapping[str, Outcomes]) -> list[Planned]:
    reference, worth = by_row[study.config.reference], study.config.worth
    level = study.config.starved
    pairs = {i: _paired(by_row[c.row], reference, c.measure, level) for i, c in enumerate(study.contrasts)}
    counts = [i for i, c in enumerate(study.contrasts) if c.measure == STARVED]
    decided = decide({i: pair for i, pair in pairs.items() if len(pair[0]) > 1}, len(pairs), counts)
    contrasts = []
    for i, contrast in enumerate(study.contrasts):
        planned = Planned(contrast.row, contrast.measure)
        if i in decided:
            found = decided[i]
            planned = dataclasses.replace(planned, **vars(found))
            if found.spread > 0 and contrast.measure != STARVED:
                level = LEVEL / len(pairs)
                planned = dataclasses.replace(
                    planned,
                    power=power(worth, found.spread, len(pairs[i][0]), level),
                    seeds_needed=seeds_for(worth, found.spread, level),
                )
        contrasts.append(planned)
    return contrasts


def _spreads(study: Study, by_row: Mapping[str, Outcomes]) -> dict[str, float]:
    reference, found = by_row[study.config.reference], {}
    for measure in (AVERAGE, WORST, *study.domains):
        changes = [
            [b - a for a, b in zip(*_paired(by_row[name], reference, measure), strict=True)] for name in study.compared
        ]
        found[measure] = statistics.median([standard_deviation(c) for c in changes if len(c) > 1] or [0.0])
    return {measure: spread for measure, spread in found.items() if spread > 0}


def settings_of(study: Study) -> dict[str, Any]:
    """What all rows have in common unless they say otherwise."""
    training, evaluation = study.base.training, study.base.evaluation
    batch, accumulated = (training.get(key) for key in ("per_device_train_batch_size", "gradient_accumulation_steps"))
    completions = batch * accumulated if isinstance(batch, int) and isinstance(accumulated, int) else None
    several = any(domain.training.num_generations for domain in study.base.domains.values())
    generations = None if several else training.get("num_generations")
    prompts = completions // generations if completions and isinstance(generations, int) else None
    return {
        "model": study.base.model.path,
        "steps": training.get("max_steps"),
        "prompts_per_step": prompts,
        "completions_per_step": completions,
        "learning_rate": training.get("learning_rate"),
        "evaluation_prompts": evaluation.prompts,
        "evaluation_samples": evaluation.samples,
    }


def planning_note(study: Study) -> str:
    """Which comparisons decide, and how to name some where none does."""
    reference, count = study.config.reference, len(study.contrasts)
    if count:
        holm = "" if count == 1 else f" after Holm's correction for these {count}"
        named = "1 planned contrast decides" if count == 1 else f"{count} planned contrasts decide"
        return (
            f"{named}, by {_tests(study)} over seeds{holm}. Every other difference from {reference} is exploratory: "
            "it may say what to plan next, and proves nothing."
        )
    why = f"{len(study.compared)} rows are compared with {reference} and the file names no contrasts"
    row = next(iter(study.compared), "mgs")
    return (
        f"Nothing is decided: {why}, so every difference is exploratory. Name the few that matter before the first "
        f"run, for example contrasts: [{{row: {row}, measure: average}}]."
    )


def _tests(study: Study) -> str:
    kinds = {contrast.measure == STARVED for contrast in study.contrasts}
    names = {False: "the paired t test", True: "McNemar's exact test (starved seeds)"}
    return " and ".join(name for kind, name in names.items() if kind in kinds)


def _notes(study: Study, rows: Sequence[RowResult], plan: Sequence[Contrast] | None) -> Iterator[str]:
    """Sentences on how the numbers were made and what they cannot say."""
    yield planning_note(study)
    late = [f"{c.row} ({c.measure})" for c in study.contrasts if plan is not None and c not in plan]
    if late:
        yield f"{', '.join(late)}: named after the first run started, so read it as exploratory all the same."
    yield (
        "Scores are mean rewards of sampled answers to held-out prompts, the same ones for every row and seed. "
        "Intervals are Student's over seeds, cut at 0 and 1; one seed, or seeds that are all equal, give none."
    )
    once = [row.name for row in rows if not row.seeds_planned]
    if once:
        yield f"{', '.join(once)}: one model for all seeds, shown with intervals over prompts and not compared."
    if any(isinstance(row, ExpertsRow) for row in study.rows.values()):
        yield "A row of experts is not one model: each domain is answered by the expert trained on it alone."
    if missing := sum(row.seeds_planned > len(row.seeds_done) for row in rows):
        yield f"{missing} of {len(rows)} rows do not have all their seeds yet."


# Before a study runs


def expected_power(study: Study, home: Path) -> Iterator[str]:
    """What the planned contrasts can see, by the spread that a finished study measured or an assumed one.

    ``home`` is the study's own folder; without results there, the other studies beside it with the same model,
    domains and evaluation are asked.
    """
    yield planning_note(study)
    known, measured = _known_spreads(study, home)
    assumed = ASSUMED_SPREAD, "assumed: no study here has measured it yet"
    worth, level = study.config.worth, LEVEL / max(1, len(study.contrasts))
    for contrast in study.contrasts:
        if contrast.measure == STARVED:
            continue  # a count, which goes by another test
        spread, source = (known[contrast.measure], measured) if contrast.measure in known else assumed
        common = len(set(study.seeds(contrast.row)) & set(study.seeds(study.config.reference)))
        seen, needed = power(worth, spread, common, level), seeds_for(worth, spread, level)
        least = f"{needed} seeds" if needed else "more than 1,000 seeds"
        yield (
            f"{contrast.row} - {study.config.reference}, {contrast.measure}: {common} seeds see a difference of "
            f"{worth:g} with a chance of {seen:.2f}; {least} see it with {POWER:g} (spread {spread:.3f}, {source})."
        )


def _known_spreads(study: Study, home: Path) -> tuple[dict[str, float], str]:
    """The spreads that a study has measured, and which one: this one, or the newest of those like it."""
    others = sorted(home.parent.glob("*/study.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in [home / "study.json", *others]:
        found = _read(path)
        like = [found.get("domains"), found.get("settings")] == [list(study.domains), settings_of(study)]
        given = found.get("spreads")
        spreads = {key: value for key, value in given.items() if _is_spread(value)} if isinstance(given, dict) else {}
        if spreads and (like or path.parent == home):
            return spreads, f"measured in {path.parent}"
    return {}, ""


def _is_spread(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1e100


def _read(path: Path) -> dict[str, Any]:
    """The object in a study's results; an empty one where it cannot be read, for then it says nothing of the spread."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

"""From the files of a study's jobs to its table."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from counterpoint.runs import environment
from counterpoint.study.folder import JobRecord, StudyFolder
from counterpoint.study.jobs import Job, plan_jobs
from counterpoint.study.load import Study
from counterpoint.study.notes import notes_on
from counterpoint.study.outcome import Cost, Outcome, read_outcome
from counterpoint.study.results import AVERAGE, Compared, Failure, RowResult, Score, StudyResult
from counterpoint.study.schema import BaseRow, ExpertsRow, MergeRow, RefreshRow, RollbackRow
from counterpoint.study.statistics import (
    Difference,
    Spread,
    holm,
    mean_of_independent,
    paired_difference,
    spread,
    verdict,
)

Outcomes = dict[int, Outcome]
"""Seed -> what the row reached with it. The base stands under every seed of the study."""


def summarize(study: Study, folder: StudyFolder) -> StudyResult:
    """The table of what is done so far.

    Raises:
        RunError: files of a run that is done are gone.
    """
    jobs = plan_jobs(study, folder.runs)
    records = {job.id: record for job in jobs if (record := folder.record(job.id)) is not None}
    done = {job.id: job for job in jobs if job.id in records and records[job.id].status == "done"}
    outcomes = {name: read_outcome(job, records[name], folder) for name, job in done.items()}
    by_row = {name: _by_seed(study, name, jobs, outcomes) for name in study.rows}
    rows = [_row(study, name, by_row, [r for r in records.values() if r.row == name]) for name in study.rows]
    reference = study.config.reference
    compared = _compared(study, by_row, {name: reference for name in study.rows if name != reference})
    made_of = _compared(study, by_row, {row.name: row.of for row in rows if row.of is not None})
    rows = [
        dataclasses.replace(row, difference=compared.get(row.name), difference_of=made_of.get(row.name)) for row in rows
    ]
    return StudyResult(
        name=study.config.name,
        reference=study.config.reference,
        seeds=study.config.seeds,
        domains=study.domains,
        budget=_budget(study),
        settings=_settings(study),
        rows=tuple(rows),
        notes=tuple(notes_on(study, rows)),
        environment=environment() | {"parallel": study.config.parallel},
    )


def _by_seed(study: Study, name: str, jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> Outcomes:
    """The outcomes of one row by seed; of experts only seeds of which every expert is done."""
    row = study.rows[name]
    own = [job for job in jobs if job.row == name]
    if isinstance(row, BaseRow):
        found = [outcomes[job.id] for job in own if job.id in outcomes]
        return dict.fromkeys(study.config.seeds, found[0]) if found else {}
    if isinstance(row, ExpertsRow):
        return _experts(study, study.seeds(name), own, outcomes)
    made = {job.seed: (job, outcomes[job.id]) for job in own if job.id in outcomes and job.seed is not None}
    return {seed: _with_needs(job, outcome, outcomes) for seed, (job, outcome) in made.items()}


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
    return Outcome(outcome.scores, cost, outcome.own_stage)


def _row(study: Study, name: str, by_row: Mapping[str, Outcomes], records: Sequence[JobRecord]) -> RowResult:
    row, found = study.rows[name], by_row[name]
    failed = tuple(
        Failure(r.seed, f"{r.domain}: {r.reason}" if r.domain else r.reason) for r in records if r.status == "failed"
    )
    is_base = isinstance(row, BaseRow)
    kind = getattr(row, "kind", "train")
    seeds = () if is_base else tuple(found)
    planned = 0 if is_base else len(study.seeds(name))
    described = row.description or _described(row)
    start = RowResult(name, kind, described, seeds, failed, planned, of=getattr(row, "of", None))
    if not found:
        return start
    average, scores = _base_scores(study, found) if is_base else _seed_scores(study, found)
    costs = [outcome.cost for outcome in found.values()]
    return dataclasses.replace(
        start,
        scores=scores,
        average=average,
        forgetting=_forgetting(study, found),
        rigidity=_rigidity(study, found, by_row),
        cost=Cost(
            statistics.fmean(cost.steps for cost in costs),
            statistics.fmean(cost.tokens for cost in costs),
            statistics.median(cost.seconds for cost in costs),
        ),
    )


def _described(row: Any) -> str:
    """A few words for a row whose file has none."""
    if isinstance(row, ExpertsRow):
        return "each domain by its own model"
    if isinstance(row, MergeRow):
        return f"{row.of} merged by {row.method.replace('_', ' ')}"
    if isinstance(row, RefreshRow | RollbackRow):
        return f"{row.of}, then {row.kind} of {row.domain}"
    return "the untouched model" if isinstance(row, BaseRow) else ""


def _seed_scores(study: Study, found: Outcomes) -> tuple[Score, dict[str, Score]]:
    values = {key: [_value(outcome, key) for outcome in found.values()] for key in (*study.domains, AVERAGE)}
    scores = {key: Score(**vars(spread(listed)), by_seed=tuple(listed)) for key, listed in values.items()}
    return scores.pop(AVERAGE), scores


def _base_scores(study: Study, found: Outcomes) -> tuple[Score, dict[str, Score]]:
    once = next(iter(found.values())).scores
    scores = {name: Score(**vars(once[name]), by_seed=(once[name].mean,)) for name in study.domains}
    average = mean_of_independent([once[name] for name in study.domains])
    return Score(**vars(average), by_seed=(average.mean,)), scores


def _value(outcome: Outcome, key: str) -> float:
    """A domain's score, or the mean over domains."""
    scores = outcome.scores
    return statistics.fmean(score.mean for score in scores.values()) if key == AVERAGE else scores[key].mean


def _forgetting(study: Study, found: Outcomes) -> dict[str, Spread] | None:
    """What each domain had after its own stage, less what it has at the end."""
    lost = {
        name: [o.own_stage[name] - o.scores[name].mean for o in found.values() if name in o.own_stage]
        for name in study.domains
    }
    return {name: spread(values) for name, values in lost.items() if values} or None


def _rigidity(study: Study, found: Outcomes, by_row: Mapping[str, Outcomes]) -> dict[str, Spread] | None:
    """What an expert of the same seed reaches, less what the domain had after its own stage."""
    experts = next((by_row[name] for name, row in study.rows.items() if isinstance(row, ExpertsRow)), {})
    short = {
        name: [
            experts[seed].scores[name].mean - outcome.own_stage[name]
            for seed, outcome in found.items()
            if seed in experts and name in outcome.own_stage
        ]
        for name in study.domains
    }
    return {name: spread(values) for name, values in short.items() if values} or None


def _compared(
    study: Study, by_row: Mapping[str, Outcomes], references: Mapping[str, str]
) -> dict[str, dict[str, Compared]]:
    """Every row of ``references`` beside its reference, by row and domain, corrected for all of these together."""
    differences: dict[tuple[str, str], Difference] = {}
    for name, reference in references.items():
        found, other = by_row[name], by_row[reference]
        common = [seed for seed in found if seed in other]
        for key in (*study.domains, AVERAGE):
            ours, theirs = ([_value(side[seed], key) for seed in common] for side in (found, other))
            if (difference := paired_difference(ours, theirs)) is not None:
                differences[name, key] = difference
    corrected = holm({key: difference.p for key, difference in differences.items()})
    compared: dict[str, dict[str, Compared]] = {}
    for (name, key), d in differences.items():
        p = corrected[name, key]
        compared.setdefault(name, {})[key] = Compared(**vars(d), p_corrected=p, verdict=verdict(d.mean, p))
    return compared


def _budget(study: Study) -> dict[str, Any]:
    training = study.base.training
    batch, accumulated = (training.get(key) for key in ("per_device_train_batch_size", "gradient_accumulation_steps"))
    completions = batch * accumulated if isinstance(batch, int) and isinstance(accumulated, int) else None
    generations = training.get("num_generations")
    prompts = completions // generations if completions and isinstance(generations, int) else None
    return {"steps": training.get("max_steps"), "prompts_per_step": prompts, "completions_per_step": completions}


def _settings(study: Study) -> dict[str, Any]:
    evaluation = study.base.evaluation
    return {
        "model": study.base.model.path,
        "learning_rate": study.base.training.get("learning_rate"),
        "evaluation_prompts": evaluation.prompts,
        "evaluation_samples": evaluation.samples,
    }

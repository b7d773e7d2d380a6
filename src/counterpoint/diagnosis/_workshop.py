"""Measures at the points of a diagnosis: calls the analyses on checkpoints and on completions that they share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from counterpoint.checkpoints import compare, open_checkpoint
from counterpoint.diagnosis._adam import state_beside
from counterpoint.diagnosis._course import Course, Point
from counterpoint.diagnosis.conflicts import Conflicts, conflicts_of, own_grouping
from counterpoint.diagnosis.damage import Damage, DamageOptions, damage
from counterpoint.diagnosis.directions import EditTensors
from counterpoint.diagnosis.edits import Edits, edits
from counterpoint.diagnosis.rollouts import Rollouts
from counterpoint.diagnosis.routes import Routes, measure_routes
from counterpoint.diagnosis.subject import Subject, completions_for, open_subject
from counterpoint.errors import CounterpointError
from counterpoint.evaluation import EvaluationPlan, evaluate
from counterpoint.progress import Progress, within
from counterpoint.surgery import GROUPINGS

Effort = Literal["quick", "usual", "thorough"]

MIN_PROMPTS = 8
"""Prompts per domain below which nothing is sampled."""

BATCH_SIZE = 32
"""Completions in memory at once."""

DAMAGE_SAMPLES = 2
"""Completions of each prompt behind a damage. Its interval comes from prompts; more samples of one tell little."""

DAMAGE_EFFORT: dict[Effort, dict[str, Any]] = {
    "quick": {"draws": 1, "scales": (1.0,)},
    "usual": {"draws": 2},
    "thorough": {"lanczos": 16},
}

QUICK_BATCHES = 8

MIN_BATCHES = 4
"""Prompts with a signal below which a domain's gradient is left out."""

BATCHES = 16
"""Batches of each domain's gradient: the conflicts' noise floor comes from their spread."""


@dataclass(frozen=True)
class CompletionsKept:
    """The file of completions."""

    file: str


@dataclass(frozen=True)
class PointScores:
    """The evaluation of a given checkpoint on held-out prompts: lines as in ``evals.jsonl`` and ``samples.jsonl``."""

    moment: str
    evals: tuple[dict[str, Any], ...]
    samples: tuple[dict[str, Any], ...]


@dataclass
class Workshop:
    """What is diagnosed, how much of it is measured, and the model that is loaded at the moment."""

    course: Course
    prompts: int
    samples: int
    seed: int
    effort: Effort
    on_progress: Progress
    _loaded: tuple[str, Subject] | None = field(default=None, init=False)

    def subject(self, point: Point) -> Subject:
        """The model at ``point``; only one is kept in memory."""
        if self._loaded is None or self._loaded[0] != point.name:
            self._loaded = None
            self._loaded = (point.name, open_subject(self.course.config, point.model))
        return self._loaded[1]

    def rollouts_file(self, point: Point) -> Path:
        """Where the completions at ``point`` are kept."""
        return self.course.folder / f"rollouts-{point.name}.jsonl"

    def edits(self) -> Edits:
        """What every stage changed: each point compared with the one before it."""
        base, *later = (point.model for point in self.course.points)
        return edits(base, later, chain=True, on_progress=self.on_progress)

    def scores(self, point: Point) -> PointScores:
        """Evaluates a given checkpoint on the held-out prompts, as a run evaluates its own."""
        subject = self.subject(point)
        plan = EvaluationPlan.of_config(subject.config, subject.config.training.get("max_completion_length"))
        progress = within(f"evaluate {point.moment}", self.on_progress)
        found = evaluate(subject.model, subject.tokenizer, list(subject.domains.values()), plan, progress)
        about = {"step": point.step, "when": point.moment}
        samples = [about | {"domain": score.domain} | vars(sample) for score in found for sample in score.examples]
        return PointScores(point.moment, tuple(about | score.to_json() for score in found), tuple(samples))

    def sample(self, point: Point) -> CompletionsKept:
        """Samples completions of every domain at ``point`` and keeps them."""
        file = self.rollouts_file(point)
        completions_for(
            self.subject(point),
            prompts=self.prompts,
            samples=self.samples,
            seed=self.seed,
            at_least=MIN_PROMPTS,
            save=file,
            on_progress=within(point.moment, self.on_progress),
        )
        return CompletionsKept(file.name)

    def routes(self, point: Point) -> Routes:
        """The routes of every domain at ``point``, and the directions of the stages' edits on them."""
        subject = self.subject(point)
        alone = [leg for leg in self.course.legs if len(leg.stage.domains) == 1]
        edits = {
            leg.stage.domains[0]: EditTensors(compare(open_checkpoint(leg.start.model), open_checkpoint(leg.end.model)))
            for leg in alone
            if leg.stage.domains[0] in subject.domains
        }
        return measure_routes(
            subject.model,
            subject.tokenizer,
            self._rollouts(point),
            edits=edits if len(edits) > 1 else None,
            seed=self.seed,
            on_progress=within(point.moment, self.on_progress),
        )

    def conflicts(self, point: Point) -> Conflicts:
        """The domains' gradients at ``point``; in Adam's metric too where its state was kept."""
        rollouts = self._rollouts(point)
        quick = self.effort == "quick"
        model = self.subject(point).model
        state, _ = (None, "") if quick else state_beside(point.model, model)
        # A domain that is nearly solved has few prompts with a signal, and every batch needs one of its own.
        signals = {name: part.informative.num_groups for name, part in rollouts.items()}
        told = {name: part for name, part in rollouts.items() if signals[name] >= MIN_BATCHES}
        if len(told) < 2:
            counts = ", ".join(f"{name} has {count}" for name, count in signals.items())
            raise CounterpointError(
                f"need {MIN_BATCHES} prompts per domain whose completions differ in reward; {counts}. Use more prompts"
            )
        wanted = QUICK_BATCHES if quick else BATCHES
        return conflicts_of(
            model,
            told,
            groupings=("module", *GROUPINGS, own_grouping(self.course.config)),
            batches=min(wanted, *(signals[name] for name in told)),
            optimizer_state=state,
            on_progress=within(point.moment, self.on_progress),
        )

    def damage(self, domain: str, start: Point, end: Point, other: str | None) -> Damage:
        """What the edit from ``start`` to ``end`` does to ``domain``, on completions at ``start``."""
        options = DamageOptions(
            prompts=self.prompts,
            samples=min(self.samples, DAMAGE_SAMPLES),
            batch_size=BATCH_SIZE,
            seed=self.seed,
            **DAMAGE_EFFORT[self.effort],
        )
        return damage(
            self.course.config,
            start.model,
            end.model,
            domain,
            other=other,
            options=options,
            completions=self._kept(start),
            on_progress=within(f"{domain}, {start.moment} to {end.moment}", self.on_progress),
        )

    def _rollouts(self, point: Point) -> dict[str, Rollouts]:
        return completions_for(self.subject(point), file=self._kept(point), at_least=2)

    def _kept(self, point: Point) -> Path:
        file = self.rollouts_file(point)
        if not file.is_file():
            raise CounterpointError(f"there are no completions {point.moment}: sampling them failed.")
        return file

"""Measures patched models on the two splits: training rows to select by, held-out rows to report on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from counterpoint.diagnosis.subject import Subject, sampled_plan
from counterpoint.domains import Domain
from counterpoint.evaluation import DomainScore, EvaluationPlan, evaluate
from counterpoint.progress import Progress
from counterpoint.recovery.rolling_back.patch import Patch, Site
from counterpoint.recovery.rolling_back.results import Split

Scored = Mapping[str, DomainScore]
"""Scores by domain."""

SELECTION = "training rows, the last ones"
TEST = "held-out rows"


@dataclass(frozen=True)
class Part:
    """The rows of one split: domains whose ``evaluation`` rows are those, and how they are sampled."""

    name: str
    domains: tuple[Domain, ...]
    plan: EvaluationPlan

    @property
    def completions(self) -> int:
        """Completions that one measurement takes."""
        return sum(len(domain.evaluation) for domain in self.domains) * self.plan.samples

    @property
    def split(self) -> Split:
        """What a result says of it."""
        return Split(min(len(domain.evaluation) for domain in self.domains), self.plan.samples, self.name)


def selection_part(subject: Subject, prompts: int, samples: int, seed: int) -> Part:
    """The last ``prompts`` training rows of every domain: scores are computed on the first ones."""
    plan = sampled_plan(subject.config)
    plan = replace(plan, samples=samples, sampling=replace(plan.sampling, seed=seed))
    domains = tuple(replace(domain, evaluation=domain.train[-prompts:]) for domain in subject.domains.values())
    return Part(SELECTION, domains, plan)


def test_part(subject: Subject) -> Part:
    """The held-out rows of every domain, sampled as the configuration says."""
    return Part(TEST, tuple(subject.domains.values()), sampled_plan(subject.config))


@dataclass(frozen=True)
class Bench:
    """Where patches are measured: every call sets the model's weights and evaluates all domains."""

    site: Site
    subject: Subject

    def measure(self, patches: Sequence[Patch | None], part: Part, what: str, on_progress: Progress) -> list[Scored]:
        """The scores of every patch, with one random stream for all; None stands for the checkpoint before the edit."""
        count = _Count(what, part.completions * len(patches), on_progress)
        return [self._one(patch, part, count) for patch in patches]

    def _one(self, patch: Patch | None, part: Part, count: "_Count") -> Scored:
        self.hold(patch)
        scores = evaluate(self.subject.model, self.subject.tokenizer, part.domains, part.plan, count)
        return {score.domain: score for score in scores}

    def hold(self, patch: Patch | None) -> None:
        """Sets the model to a patch; None stands for the checkpoint before the edit."""
        self.site.hold(self.site.edit.before if patch is None else patch)


class _Count:
    """Adds up the completions of many evaluations for one bar."""

    def __init__(self, what: str, total: int, on_progress: Callable[[str, int, int], None]) -> None:
        self.what, self.total, self.on_progress = what, total, on_progress
        self.finished = 0

    def __call__(self, domain: str, done: int, total: int) -> None:
        self.on_progress(self.what, self.finished + done, self.total)
        if done == total:
            self.finished += total

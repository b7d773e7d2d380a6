"""The evaluations of a run: made at its moments, written line by line, and read back as what decisions rest on."""

from collections.abc import Sequence
from typing import Any

from counterpoint.config import Config
from counterpoint.domains import Domain
from counterpoint.evaluation.sampling import rollout_engine
from counterpoint.evaluation.scoring import DomainScore, EvaluationPlan, evaluate
from counterpoint.evaluation.trackers import tracking_of
from counterpoint.launch import Launch
from counterpoint.runs import Reporter, RunDirectory
from counterpoint.runs.stages import Looks
from counterpoint.stats import Scores


class Evaluations:
    """Evaluations of all domains of one run."""

    def __init__(
        self,
        config: Config,
        domains: Sequence[Domain],
        tokenizer: Any,
        run: RunDirectory,
        launch: Launch,
        reporter: Reporter,
    ) -> None:
        self.config, self.domains, self.tokenizer = config, domains, tokenizer
        self.run, self.launch, self.reporter = run, launch, reporter

    def looks(self) -> dict[int, dict[str, Scores]]:
        """The scores of every whole evaluation by step and domain. Only the first rank may ask."""
        return looks_of(self.run, [domain.name for domain in self.domains])

    def has(self, step: int) -> bool:
        """Whether all domains were evaluated after ``step``; the same on every rank."""
        return self.launch.share(lambda: step in self.looks())

    def make(self, trainer: Any, when: str) -> list[DomainScore]:
        """Evaluates all domains with the model that ``trainer`` trains; every rank gets all scores."""
        scores = evaluate(
            trainer.accelerator.unwrap_model(trainer.model),
            self.tokenizer,
            self.domains,
            EvaluationPlan.of_config(self.config, trainer.max_completion_length),
            lambda domain, done, total: self.reporter.evaluating(when, domain, done, total),
            self.launch,
            rollout_engine(trainer),
        )
        if tracking := tracking_of(trainer):
            tracking.scored(scores)
        trainer.held_out |= {score.domain: score.mean for score in scores}
        return scores

    def remind(self, trainer: Any) -> None:
        """Tells ``trainer`` the newest scores that are written; on the first rank, where decisions are made."""
        if self.launch.first:
            known = (line for line in self.run.lines("evals.jsonl") if line["mean"] is not None)
            trainer.held_out |= {line["domain"]: line["mean"] for line in known}

    def take(self, trainer: Any, when: str, step: int, stage: int | None) -> list[DomainScore]:
        """Evaluates all domains, writes it and seals the run; every rank gets all scores."""
        scores = self.make(trainer, when)
        if self.launch.first:
            self.write(scores, when, step, stage)
            self.run.update(seal=self.run.seal(step))
        return scores

    def write(self, scores: Sequence[DomainScore], when: str, step: int, stage: int | None) -> None:
        """Writes and tells them; for the first rank."""
        self.run.append_samples(
            [
                {"step": step, "when": when, "domain": score.domain} | vars(sample)
                for score in scores
                for sample in score.examples
            ]
        )
        for score in scores:
            self.run.append_eval({"step": step, "when": when, "stage": stage} | score.to_json())
        self.reporter.evaluated(when, step, scores)


def looks_of(run: RunDirectory, domains: Sequence[str]) -> dict[int, dict[str, Scores]]:
    """The scores of every evaluation of all ``domains``, by step and domain.

    A kill can leave an evaluation of which some domains were written; that is none.
    """
    lines = run.lines("evals.jsonl")
    written: dict[tuple[str, int], set[str]] = {}
    for line in lines:
        written.setdefault((line["when"], line["step"]), set()).add(line["domain"])
    found: dict[int, dict[str, Scores]] = {}
    for line in lines:
        if written[line["when"], line["step"]] >= set(domains):
            found.setdefault(line["step"], {})[line["domain"]] = tuple(line["scores"])
    return found


def with_look(looks: Looks, step: int, scores: Sequence[DomainScore]) -> Looks:
    """``looks`` with these scores, rounded as ``evals.jsonl`` rounds them, so that a resumed run decides alike."""
    return {**looks, step: {score.domain: tuple(score.to_json()["scores"]) for score in scores}}

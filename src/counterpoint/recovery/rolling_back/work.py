"""One rollback, stage by stage; what is done before it ends stays in ``result``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from counterpoint.config import Config
from counterpoint.diagnosis.damage import shared_neurons
from counterpoint.diagnosis.rollouts import Rollouts
from counterpoint.diagnosis.subject import Subject, completions_for, open_subject
from counterpoint.models import threads_for
from counterpoint.progress import Progress
from counterpoint.recovery.rolling_back.comparison import beyond, change, restored, row
from counterpoint.recovery.rolling_back.edit import Edit
from counterpoint.recovery.rolling_back.fisher import diagonal_fisher
from counterpoint.recovery.rolling_back.options import RollbackOptions
from counterpoint.recovery.rolling_back.patch import Patch, Site, write_patch
from counterpoint.recovery.rolling_back.region import Region
from counterpoint.recovery.rolling_back.results import Rollback, Trial
from counterpoint.recovery.rolling_back.scores import WeightScores
from counterpoint.recovery.rolling_back.selection import (
    Candidate,
    better_random,
    budget_masks,
    candidates,
    choose,
    chooser_of,
)
from counterpoint.recovery.rolling_back.trials import Bench, Scored, selection_part, test_part
from counterpoint.stats import Estimate


@dataclass
class Work:
    """The stages in order: is anything damaged, scores, masks, selection, report, checkpoint."""

    config: Config
    edit: Edit
    changed: Mapping[str, int]
    options: RollbackOptions
    completions: Path | None
    out: Path | None
    on_progress: Progress
    result: Rollback

    def run(self) -> None:
        """Everything; ends early where nothing was damaged or nothing helps."""
        subject = open_merged(self.config, self.edit)
        bench = Bench(Site(subject.model, self.edit, self.changed), subject)
        with threads_for(self.edit.num_weights):
            ends = self._ends(bench)
            assert self.result.damage is not None
            if self.result.damage.high >= 0 and not self.options.force:
                return
            region, scores = self._scores(bench)
            tried = self._candidates(region, scores)
            self._select(bench, tried)
            self._report(bench, tried, *ends)
        self._write(tried)

    def _note(self, *notes: str, **found: Any) -> None:
        self.result = replace(self.result, notes=(*self.result.notes, *notes), **found)

    def _ends(self, bench: Bench) -> tuple[Scored, Scored]:
        """Held-out scores before and after the edit: is there anything to recover?"""
        part = test_part(bench.subject)
        before, after = bench.measure([None, Patch(self.edit)], part, "evaluate before and after", self.on_progress)
        rows = (row("before", None, before, after), row("after", None, after, after))
        domain = self.result.domain
        self._note(test=part.split, damage=change(before[domain], after[domain]), reported=rows)
        return before, after

    def _scores(self, bench: Bench) -> tuple[Region, WeightScores]:
        """The region and the scores in it, measured at the checkpoint before the edit."""
        options, domain = self.options, self.result.domain
        bench.hold(None)
        rollouts = self._rollouts(bench.subject)
        shared = None
        if options.where == "route":
            pair = (rollouts[domain], rollouts[str(self.result.other)])
            shared = shared_neurons(bench.subject, pair, options.fraction, options.batch_size)
        region = Region(options.unit == "neurons", shared)
        scores = WeightScores(options.score, self.edit, region)
        if options.score == "damage":
            names = [name for name in self.changed if region.holds(self.edit.neurons(name))]
            fisher = diagonal_fisher(
                bench.subject.model, rollouts[domain], bench.site.params_of(names), self.on_progress
            )
            scores = replace(scores, fisher=bench.site.to_disk(fisher))
        return region, scores

    def _rollouts(self, subject: Subject) -> dict[str, Rollouts]:
        """Completions of the domains that the choice of weights looks at; of none where it looks at the edit alone."""
        options, domain = self.options, self.result.domain
        wanted = [domain] if options.score == "damage" else []
        wanted += [name for name in (domain, str(self.result.other)) if options.where == "route" and name not in wanted]
        if not wanted:
            return {}
        rows = [subject.domains[name].train for name in wanted]
        if min(map(len, rows)) < 2 * options.prompts and self.completions is None:
            self._note("Few training rows: some are used both for the scores and for the selection.")
        return completions_for(
            replace(subject, domains={name: subject.domains[name] for name in wanted}),
            file=self.completions,
            prompts=options.prompts,
            samples=options.samples,
            seed=options.seed,
            on_progress=self.on_progress,
        )

    def _candidates(self, region: Region, scores: WeightScores) -> list[Candidate]:
        names = [name for name in self.changed if region.holds(self.edit.neurons(name))]
        passes = _Passes(self.on_progress)
        chooser = chooser_of(scores, self.options.unit, names, passes)
        self._note(num_candidates=chooser.num_candidates)
        masks, notes = budget_masks(chooser, self.edit, self.options, passes)
        self._note(*notes)
        draws = self.on_progress
        return candidates(
            masks, self.edit, region, names, self.options, lambda done, total: draws("random weights", done, total)
        )

    def _select(self, bench: Bench, tried: list[Candidate]) -> None:
        options = self.options
        part = selection_part(bench.subject, options.prompts, options.samples, options.seed)
        patches = [Patch(self.edit), *(Patch(self.edit, one.mask, one.scale) for one in tried)]
        scored = bench.measure(patches, part, f"select among {len(tried)}", self.on_progress)
        after, *rest = scored
        trials = [self._trial("after", None, 0.0, 0.0, 0, after)]
        for one, scores in zip(tried, rest, strict=True):
            trials.append(self._trial(one.kind, one.draw, one.budget, one.scale, one.mask.num_weights, scores))
        chosen = choose(trials)
        better = better_random(trials, chosen) if chosen else None
        self._note(*([better] if better else []), selection=part.split, tried=tuple(trials), chosen=chosen)

    def _trial(
        self, kind: str, draw: int | None, budget: float, scale: float, num_weights: int, scored: Scored
    ) -> Trial:
        means = {name: score.mean for name, score in scored.items()}
        average = sum(means.values()) / len(means)
        objective = average if self.options.objective == "average" else means[self.result.domain]
        return Trial(kind, draw, budget, scale, num_weights, means, objective)

    def _report(self, bench: Bench, tried: list[Candidate], before: Scored, after: Scored) -> None:
        """The chosen rollback on the test split, once, beside random weights of the same budget and scale."""
        chosen = self._chosen(tried)
        if not chosen:
            return
        part, domain = test_part(bench.subject), self.result.domain
        patches = [Patch(self.edit, one.mask, one.scale) for one in chosen]
        scored = bench.measure(patches, part, "report", self.on_progress)
        rows = [row(one.kind, one.draw, scores, after) for one, scores in zip(chosen, scored, strict=True)]
        own, random = scored[0], scored[1:]
        self._note(
            reported=(*self.result.reported, *rows),
            restored=self._restored(before[domain].scores, after[domain].scores, [own[domain].scores]),
            restored_random=self._restored(
                before[domain].scores, after[domain].scores, [scores[domain].scores for scores in random]
            ),
            beyond_random={name: beyond(own[name], [scores[name] for scores in random]) for name in own},
        )

    def _restored(self, before: Any, after: Any, now: Any) -> Estimate | None:
        assert self.result.damage is not None
        return restored(before, after, now) if self.result.damage.high < 0 else None

    def _chosen(self, tried: list[Candidate]) -> list[Candidate]:
        """The chosen rollback, then the random weights beside it."""
        chosen = self.result.chosen
        if chosen is None:
            return []
        return [one for one in tried if (one.budget, one.scale) == (chosen.budget, chosen.scale)]

    def _write(self, tried: list[Candidate]) -> None:
        chosen = self._chosen(tried)
        if chosen and self.out is not None:
            written = write_patch(Patch(self.edit, chosen[0].mask, chosen[0].scale), self.out, self.on_progress)
            self._note(checkpoint=str(written))


def open_merged(config: Config, edit: Edit) -> Subject:
    """The model after the edit with all domains, adapters merged; its weights are set by the caller."""
    subject = open_subject(config, edit.pair.after.path)
    merged = subject.model.merge_and_unload() if hasattr(subject.model, "merge_and_unload") else subject.model
    return replace(subject, model=merged.eval().requires_grad_(False))


class _Passes:
    """Numbers the passes over the weights."""

    def __init__(self, on_progress: Progress) -> None:
        self.on_progress, self.number = on_progress, 1

    def __call__(self, done: int, total: int) -> None:
        self.on_progress(f"rank weights, pass {self.number}", done, total)
        self.number += done == total

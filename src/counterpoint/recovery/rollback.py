"""Rollback: undoes the part of a later edit that costs an earlier domain most, without training.

    theta_new = theta_after - scale * mask * (theta_after - theta_before)

A few masks, ranked by how much each weight's edit costs the domain, and moving all weights back a part of the way are
tried on training prompts. The best of each kind is measured once on held-out prompts, beside random masks of the same
tensors and sizes. Named after LPT (arXiv 2606.02398), whose rule is not public; ``docs/recovery.md`` says what is ours.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean, variance

from counterpoint.checkpoints import check_output
from counterpoint.config import Config
from counterpoint.diagnosis._edit_vector import Edit, changed_weights
from counterpoint.diagnosis.subject import completions_for, config_of, open_subject, wanted_domains
from counterpoint.domains import Domain
from counterpoint.errors import CounterpointError
from counterpoint.evaluation import DomainScore, EvaluationPlan, evaluate
from counterpoint.models import threads_for
from counterpoint.progress import Progress, silent, within
from counterpoint.recovery import _words
from counterpoint.recovery._rollback_result import (
    MODEL,
    RESULT,
    Judged,
    Measured,
    Rollback,
    RollbackOptions,
    Split,
    Trial,
)
from counterpoint.recovery.masks import (
    Everything,
    Mask,
    MatchedMask,
    Patch,
    Site,
    TopMask,
    WeightScores,
    diagonal_fisher,
    moved_share,
    open_edit,
    uniform_masks,
    write_patch,
)
from counterpoint.stats import Estimate, Scores, difference_interval, mean_interval, standing, student_quantile
from counterpoint.topk import Ranking

BUDGETS = (0.003, 0.01, 0.03, 0.1)
_ENDS = ("before", "after")

Scored = Mapping[str, DomainScore]
"""Scores by domain."""


def rollback(
    before: str | Path,
    after: str | Path,
    domain: str,
    config: str | Path | Config,
    *,
    out: str | Path | None = None,
    options: RollbackOptions | None = None,
    on_progress: Progress = silent,
) -> Rollback:
    """Looks for the weights whose moving back restores ``domain``.

    A mask counts as a success where the domain rises beyond noise, no other domain is harmed, and it does better than
    random masks of the same tensors and sizes; moving all weights back, where the first two hold. The better one is
    written to ``OUT/checkpoint``, or neither; the result goes to ``OUT/rollback.json`` in any case. The same call again
    returns it.

    Args:
        before: the checkpoint right after the domain's own stage.
        after: a later checkpoint of the same model.
        domain: the domain that may have suffered.
        config: configuration or run directory that defines the domains.
        out: a folder for the result and the checkpoint; None writes nothing.
        options: what is tried and on how many prompts.
        on_progress: called with what is being done, steps done and in total.

    Raises:
        ConfigError: a bad configuration or an unknown domain.
        ModelError: checkpoints that cannot be compared, are equal or not finite, or a folder that is taken.
        RunError: ``out`` holds another rollback, which is not overwritten.
        CounterpointError: too few rows or memory, or a budget that is larger than the edit.
    """
    began, options = time.monotonic(), options or RollbackOptions()
    out = None if out is None else Path(out)
    config = config if isinstance(config, Config) else config_of(config)
    wanted_domains(config, [domain])
    if out is not None and (out / RESULT).is_file():
        return _kept(out / RESULT, (_words.place(before), _words.place(after), domain, options))
    edit = open_edit(before, after)
    if out is not None:
        check_output(out / MODEL, edit.pair.after)
    changed = changed_weights(edit, on_progress)
    _, problems = _counts_of(options.budgets or (), edit.num_weights, sum(changed.values()))
    if problems:
        raise CounterpointError(problems[0])
    with threads_for(edit.num_weights):
        work = _Work(config, edit, changed, domain, options, on_progress)
        found, patch = work.run(_words.place(before), _words.place(after))
    if out is not None and patch is not None:
        found = replace(found, checkpoint=str(write_patch(patch, out / MODEL, on_progress)))
    found = replace(found, seconds=time.monotonic() - began)
    if out is not None:
        _words.write(out / RESULT, found)
    return found


def _kept(file: Path, asked: tuple[str, str, str, RollbackOptions]) -> Rollback:
    found = _words.read(Rollback, file)
    if (found.before, found.after, found.domain, found.options) != asked:
        raise _words.TakenError(
            f"{file}: holds a rollback of {found.domain} with other options or of other checkpoints, and nothing is "
            f"overwritten. Repeat the first command, give another folder, or move {file.parent} away."
        )
    return found


@dataclass(frozen=True)
class _Candidate:
    """A mask or all weights, and how far they are moved back."""

    kind: str
    budget: float
    scale: float
    mask: Mask

    def patch(self, edit: Edit) -> Patch:
        return Patch(edit, self.mask, self.scale)


class _Work:
    """The steps of a rollback, in order: did the domain fall, ranking, search, what the best ones do, verdict."""

    def __init__(
        self,
        config: Config,
        edit: Edit,
        changed: Mapping[str, int],
        domain: str,
        options: RollbackOptions,
        on_progress: Progress,
    ) -> None:
        subject = open_subject(config, edit.pair.after.path)
        model = subject.model.merge_and_unload() if hasattr(subject.model, "merge_and_unload") else subject.model
        self.subject = replace(subject, model=model.eval().requires_grad_(False))
        self.site = Site.of(model, edit, changed)
        self.edit, self.changed, self.domain, self.options = edit, changed, domain, options
        self.on_progress = on_progress
        plan = EvaluationPlan.of_config(config, config.training.get("max_completion_length"))
        self.plan = replace(plan, greedy=False, examples=0)
        self.notes: list[str] = []
        self.ends: list[Scored] = []
        """The scores before and after the edit."""

    def run(self, before: str, after: str) -> tuple[Rollback, Patch | None]:
        """The result, and the patch that is to be written; None for none."""
        self.ends = self.measure([None, Patch(self.edit)], "evaluate before and after")
        first, last = self.ends
        rows = [
            self.row(_Candidate(name, 0, 0, Everything()), [own]) for name, own in zip(_ENDS, self.ends, strict=True)
        ]
        found = Rollback(
            before=before,
            after=after,
            domain=self.domain,
            options=self.options,
            num_weights=self.edit.num_weights,
            num_changed=sum(self.changed.values()),
            damage=difference_interval(first[self.domain].scores, last[self.domain].scores),
            test=Split(min(len(one.evaluation) for one in self.subject.domains.values()), self.plan.samples),
            measured=tuple(rows),
        )
        if found.damage.high >= 0:
            return found, None
        tried, search, chosen = self.search(self.candidates())
        found = replace(found, tried=tried, search=search, notes=tuple(self.notes))
        return self.report(found, chosen)

    def measure(
        self,
        patches: Sequence[Patch | None],
        what: str,
        domains: Sequence[Domain] | None = None,
        plan: EvaluationPlan | None = None,
    ) -> list[Scored]:
        """The scores of every patch, with one random stream for all; None stands for the checkpoint before the edit.

        They are those on the held-out prompts, where nothing else is given.
        """
        domains, plan = domains or tuple(self.subject.domains.values()), plan or self.plan
        found: list[Scored] = []
        for number, patch in enumerate(patches, 1):
            self.site.put(patch)
            told = within(f"{what}, {number} of {len(patches)}", self.on_progress)
            scores = evaluate(self.subject.model, self.subject.tokenizer, domains, plan, told)
            found.append({score.domain: score for score in scores})
        return found

    # Ranking

    def candidates(self) -> list[_Candidate]:
        """Masks of every budget at every scale, and all weights at some."""
        options, names, scores = self.options, list(self.changed), self.scores()

        def told(done: int, total: int) -> None:
            self.on_progress("rank weights", done, total)

        ranking = Ranking.of(names, scores, told)
        if not ranking.num_candidates:
            raise CounterpointError(
                f"score={options.score!r}: no weight has a score above 0, because the completions of {self.domain} "
                "have no gradient there. Use more prompts, or score='magnitude'."
            )
        counts, notes = _counts_of(options.budgets or BUDGETS, self.edit.num_weights, ranking.num_candidates)
        if notes and options.budgets:
            raise CounterpointError(notes[0])
        self.notes += [f"Left out. {note}" for note in notes]
        cuts = ranking.cuts(list(counts.values()), told)
        masks = {budget: TopMask(cut, scores) for budget, cut in zip(counts, cuts, strict=True)}
        found = [_Candidate("mask", budget, scale, masks[budget]) for budget, scale in product(masks, options.scales)]
        return [*found, *(_Candidate("pull-back", 1.0, scale, Everything()) for scale in options.pull_backs)]

    def scores(self) -> WeightScores:
        """What ranks the weights, measured at the checkpoint before the edit."""
        if self.options.score == "magnitude":
            return WeightScores(self.edit)
        self.site.put(None)
        only = replace(self.subject, domains={self.domain: self.subject.domains[self.domain]})
        rollouts = completions_for(
            only,
            prompts=self._prompts(self.domain),
            samples=self.options.samples,
            seed=self.options.seed,
            on_progress=self.on_progress,
        )
        params = self.site.params_of(self.changed)
        fisher = diagonal_fisher(self.subject.model, rollouts[self.domain], params, self.on_progress)
        return WeightScores(self.edit, self.site.to_disk(fisher))

    def _prompts(self, name: str) -> int:
        """How many training rows of a domain rank, and how many others choose: at most half of what it has."""
        have, wanted = len(self.subject.domains[name].train), self.options.prompts
        if have < 4:
            raise CounterpointError(
                f"The domain {name!r} has {have} training rows, and a rollback needs at least 4: half of them to rank "
                "weights, half to choose. Give the domain more rows."
            )
        if have < 2 * wanted:
            note = f"{name} has {have} training rows: {have // 2} of them are used in each step and not {wanted}."
            self.notes += [note] if note not in self.notes else []
        return min(wanted, have // 2)

    # Search

    def search(self, tried: Sequence[_Candidate]) -> tuple[tuple[Trial, ...], Split, list[tuple[Trial, _Candidate]]]:
        """Every candidate on the last training rows, and the best of each kind that beats leaving the weights alone."""
        plan = replace(
            self.plan, samples=self.options.samples, sampling=replace(self.plan.sampling, seed=self.options.seed)
        )
        domains = [
            replace(one, evaluation=one.train[-self._prompts(one.name) :]) for one in self.subject.domains.values()
        ]
        patches = [Patch(self.edit), *(one.patch(self.edit) for one in tried)]
        nothing, *scored = self.measure(patches, f"choose among {len(tried)}", domains, plan)
        trials = [Trial(one.kind, one.budget, one.scale, _means(own)) for one, own in zip(tried, scored, strict=True)]
        start = Trial("nothing", 0.0, 0.0, _means(nothing))
        split = Split(min(len(one.evaluation) for one in domains), plan.samples)
        best = [choose(start, trials, kind) for kind in ("mask", "pull-back")]
        chosen = [(one, tried[trials.index(one)]) for one in best if one is not None]
        return (start, *trials), split, chosen

    # What the chosen ones do on the held-out prompts

    def report(self, found: Rollback, chosen: Sequence[tuple[Trial, _Candidate]]) -> tuple[Rollback, Patch | None]:
        """The result, and the patch that helps most by the search; None where none helps."""
        judged: list[tuple[Judged, Patch]] = []
        for trial, one in chosen:
            (own,) = self.measure([one.patch(self.edit)], f"evaluate the {one.kind}")
            found = replace(found, measured=(*found.measured, self.row(one, [own])))
            if isinstance(one.mask, TopMask):
                found = self.with_controls(found, one, one.mask, own)
            judged.append((self.judge(found, trial, own, looks=len(chosen)), one.patch(self.edit)))
        helped = [pair for pair in judged if not pair[0].against]
        best = max(helped, key=lambda pair: pair[0].trial.average, default=None)
        found = replace(found, judged=tuple(one for one, _ in judged), written=best[0].name if best else "none")
        return found, best[1] if best else None

    def with_controls(self, found: Rollback, one: _Candidate, mask: TopMask, own: Scored) -> Rollback:
        """Random masks beside the chosen one: of the same tensors and sizes, and uniform ones of as many weights."""
        seed, draws = self.options.seed, self.options.draws
        matched = [MatchedMask(mask, self.edit, seed, draw) for draw in range(draws)]
        uniform = uniform_masks(self.edit, self.changed, mask.cut.count, seed, draws)
        scored: dict[str, list[Scored]] = {}
        rows = list(found.measured)
        for name, masks in (("matched", matched), ("uniform", uniform)):
            tried = [replace(one, kind=name, mask=each) for each in masks]
            scored[name] = self.measure([each.patch(self.edit) for each in tried], f"evaluate {name} random masks")
            rows.append(self.row(tried[0], scored[name]))
        return replace(
            found,
            measured=tuple(rows),
            ranking_adds={name: _beyond([own], scored["matched"], name) for name in own},
            placing_adds={name: _beyond(scored["matched"], scored["uniform"], name) for name in own},
        )

    def row(self, one: _Candidate, scored: Sequence[Scored]) -> Measured:
        """The mean over ``scored``, its changes against the model after the edit, and what it restored of the loss."""
        before, after = self.ends
        moved = None if one.kind in _ENDS else moved_share(self.edit, self.changed, one.mask, one.scale)
        means = {name: _mean([each[name].scores for each in scored]) for name in after}
        now = [each[self.domain].scores for each in scored]
        return Measured(
            one.kind,
            len(scored),
            moved,
            {name: mean_interval(values) for name, values in means.items()},
            {name: difference_interval(after[name].scores, values) for name, values in means.items()},
            None if moved is None else restored(before[self.domain].scores, after[self.domain].scores, now),
        )

    def judge(self, found: Rollback, trial: Trial, own: Scored, looks: int) -> Judged:
        """Whether a candidate helped, and what speaks against it."""
        margin, changes = self.options.margin, found.of(trial.kind).changes
        now = {name: score.scores for name, score in own.items()}
        former, start = mean_interval(self.ends[0][self.domain].scores).value, self.ends[1][self.domain].scores
        stands = standing(former, start, now[self.domain], looks=looks, margin=margin)
        others = _words.harms(changes, self.domain, margin)
        against = [] if stands.verdict in ("back", "improved") else [f"does not raise {self.domain} beyond noise"]
        if harmed := [name for name, harm in others.items() if harm == "harmed"]:
            against.append(f"harms {', '.join(harmed)}")
        if trial.kind == "mask" and found.ranking_adds[self.domain].low <= 0:
            against.append("does no better than random weights of the same tensors and sizes")
        return Judged(trial.kind, trial, stands, others, tuple(against))


def choose(nothing: Trial, tried: Sequence[Trial], kind: str) -> Trial | None:
    """The trial of a kind with the best average, the smallest of equal ones; None where none beats doing nothing."""
    better = [one for one in tried if one.kind == kind and one.average > nothing.average]
    return min(better, key=lambda one: (-one.average, one.budget, one.scale), default=None)


def restored(before: Scores, after: Scores, now: Sequence[Scores]) -> Estimate:
    """``(now - after) / (before - after)``: the part of a loss that came back, with Fieller's interval over prompts.

    The interval is that of a ratio of two means from the same prompts: all ratios r for which ``back - r gone`` has a
    mean that Student's t cannot tell from 0. It is infinite where the loss itself cannot be told from 0. ``now`` are
    the scores of one or several models, whose mean is taken.

    Source: E. C. Fieller (1954), J. Royal Statistical Society B 16:175.
    """
    gone, back = [], []
    for b, a, n in zip(before, after, _mean(now), strict=True):
        if b is not None and a is not None and n is not None:
            gone.append(b - a)
            back.append(n - a)
    if not gone:
        return Estimate(math.nan, -math.inf, math.inf)
    top, bottom, count = fmean(back), fmean(gone), len(gone)
    if count < 2 or bottom == 0:
        return Estimate(top / bottom if bottom else math.nan, -math.inf, math.inf)
    t2 = student_quantile(0.975, count - 1) ** 2 / count
    products = sum((b - top) * (g - bottom) for b, g in zip(back, gone, strict=True)) / (count - 1)
    # (top - r bottom)^2 = t2 (var_back - 2 r cov + r^2 var_gone)
    a = bottom**2 - t2 * variance(gone)
    b = top * bottom - t2 * products
    c = top**2 - t2 * variance(back)
    if a <= 0:
        return Estimate(top / bottom, -math.inf, math.inf)
    half = math.sqrt(max(0.0, b**2 - a * c))
    return Estimate(top / bottom, (b - half) / a, (b + half) / a)


def _beyond(own: Sequence[Scored], control: Sequence[Scored], name: str) -> Estimate:
    """How much more one mean over models scores than another, paired by prompt."""
    return difference_interval(_mean([one[name].scores for one in control]), _mean([one[name].scores for one in own]))


def _mean(scores: Sequence[Scores]) -> list[float | None]:
    """The mean over models of every prompt's score; None where one of them lacks it."""
    found: list[float | None] = []
    for values in zip(*scores, strict=True):
        known = [value for value in values if value is not None]
        found.append(fmean(known) if len(known) == len(values) else None)
    return found


def _means(scored: Scored) -> dict[str, float]:
    return {name: score.mean for name, score in scored.items()}


def _counts_of(budgets: Sequence[float], total: int, most: int) -> tuple[dict[float, int], list[str]]:
    """The number of weights of every budget that fits, smallest first, and what is wrong with the others."""
    counts, problems = {}, []
    for budget in sorted(set(budgets)):
        count = round(budget * total)
        if count < 1:
            problems.append(
                f"budgets: {budget:g} of {total:,} weights is less than one weight. The smallest is {1 / total:.2g}."
            )
        elif count > most:
            problems.append(
                f"budgets: {budget:g} of {total:,} weights is {count:,}, more than the {most:,} that can be moved "
                f"back. The largest is {largest(most, total):g}."
            )
        else:
            counts[budget] = count
    return counts, problems


def largest(most: int, total: int) -> float:
    """The largest budget of ``most`` among ``total`` weights, rounded down to four digits where that leaves any."""
    share = most / total
    digits = 10.0 ** (3 - int(f"{share:e}".split("e")[1]))
    return int(share * digits) / digits

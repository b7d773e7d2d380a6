"""Which parts of a model are pulled apart by which domains, beyond what sampling noise explains.

    found = conflicts("runs/mixed", "runs/mixed/checkpoints/step-60")
    found.cosine("layers.1.mlp", "math", "qa")     # of the true gradients, without the noise's attenuation
    print(found)

Legend: D domains, Q pairs in the order of ``pairs``, G groups, U units, S splits of all domains.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from counterpoint.config import Config
from counterpoint.diagnosis._adam import adam_metric, state_beside
from counterpoint.diagnosis._chance import pairs_of
from counterpoint.diagnosis._split_grams import GradientSource, PolicyGradients, SplitGrams, collect, splits_of
from counterpoint.diagnosis._split_tests import pair_tests, split_blocks, split_half, verdicts
from counterpoint.diagnosis.rollouts import Rollouts
from counterpoint.diagnosis.subject import Subject, completions_for, config_of, open_subject
from counterpoint.errors import CounterpointError, nearest
from counterpoint.models import is_out_of_memory
from counterpoint.progress import Progress, silent
from counterpoint.results import Result
from counterpoint.stats import Estimate
from counterpoint.surgery import GROUPINGS, group_parameters, resolve_strategy
from counterpoint.surgery.units import sum_units
from counterpoint.tables import Cell, Table

MOST_ROWS = 12
"""Groups that a table lists; ``to_dict`` has all."""

AFTER_ADAM = " after Adam"


@dataclass(frozen=True, eq=False)
class GroupConflicts:
    """One grouping under one metric; NaN is "cannot be known": no gradient, or one lost in noise."""

    grouping: str
    groups: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]

    cosine_GQ: Tensor
    """Cosine between the means over all batches: attenuated by noise."""

    floor_GQ: Tensor
    """Where nothing relates two domains, |cosine| stays below this in all but a share ``level`` of cases."""

    debiased_GQ: Tensor
    """The cosine without attenuation."""

    debiased_low_GQ: Tensor
    debiased_high_GQ: Tensor
    """Its ``1 - level`` interval; not corrected for the number of groups and pairs."""

    p_value_GQ: Tensor
    """Two-sided, of an inner product of zero; not corrected."""

    verdict_GQ: Tensor
    """-1 conflict, 1 synergy, 0 within noise (Benjamini-Hochberg). The false discovery rate over all groups and pairs
    is at most ``level`` where the tests are independent or positively dependent; elsewhere it is not guaranteed."""

    split_half_GD: Tensor
    """Cosine of every domain with itself between two halves of its batches."""

    def counts(self, pair: int | slice = slice(None)) -> tuple[int, int, int]:
        """Groups x pairs in conflict, those that pull together, and those tested; of one pair or of all."""
        verdict, tested = self.verdict_GQ[:, pair], self.p_value_GQ[:, pair].isfinite()
        return int((verdict < 0).sum()), int((verdict > 0).sum()), int(tested.sum())


@dataclass(frozen=True, eq=False)
class MetricConflicts:
    """Everything under one metric: ``gradient`` (Euclidean) or ``adam``."""

    metric: str
    groupings: tuple[GroupConflicts, ...]

    def grouping(self, name: str) -> GroupConflicts:
        """The results of one grouping; KeyError if it was not measured."""
        return {found.grouping: found for found in self.groupings}[name]


@dataclass(frozen=True, eq=False)
class Conflicts(Result):
    """Conflicts between the policy gradients of domains at one model.

    ``prompts`` are those of each domain that took part: their completions differ in reward. ``by`` is the grouping that
    the tables show.
    """

    kind: ClassVar[str] = "conflicts"

    domains: tuple[str, ...]
    prompts: tuple[int, ...]
    completions: tuple[int, ...]
    batches: int
    level: float
    metrics: tuple[MetricConflicts, ...]
    by: str = "module"
    note: str = ""

    def metric(self, name: str = "gradient") -> MetricConflicts:
        """The results under one metric; KeyError if it was not measured."""
        return {found.metric: found for found in self.metrics}[name]

    def cosine(self, group: str, first: str, second: str, *, metric: str = "gradient") -> Estimate:
        """The cosine of two domains' true gradients in one group, such as ``global`` or ``layers.1.mlp``, with its
        interval; NaN where noise hides it.

        Raises:
            CounterpointError: a group or a pair of domains that was not measured.
        """
        found, g, q = self._place(group, first, second, metric)
        values = (found.debiased_GQ, found.debiased_low_GQ, found.debiased_high_GQ)
        return Estimate(*(float(value[g, q]) for value in values))

    def verdict(self, group: str, first: str, second: str, *, metric: str = "gradient") -> str:
        """``conflict``, ``synergy`` or ``within noise``; raises as ``cosine`` does."""
        found, g, q = self._place(group, first, second, metric)
        return ("within noise", "synergy", "conflict")[int(found.verdict_GQ[g, q])]

    def _place(self, group: str, first: str, second: str, metric: str) -> tuple[GroupConflicts, int, int]:
        groupings = self.metric(metric).groupings
        found = next((one for one in groupings if group in one.groups), None)
        if found is None:
            known = [name for one in groupings for name in one.groups]
            raise CounterpointError(f"There is no group {group!r}; {nearest(group, known)}")
        for q, pair in enumerate(found.pairs):
            if {first, second} == set(pair):
                return found, found.groups.index(group), q
        raise CounterpointError(f"{first!r} and {second!r} are no pair; domains: {', '.join(self.domains)}.")

    def tables(self) -> list[Table]:
        """Pairs of domains in the whole model, then the groups beyond noise, for every metric."""
        found = []
        for metric in self.metrics:
            after = AFTER_ADAM if metric.metric == "adam" else ""
            groups = metric.grouping(self.by)
            found.append(_pairs_table(self.domains, metric, groups, after))
            for sign, title in ((-1, "Conflicts beyond noise"), (1, "Pulling together beyond noise")):
                if bool((groups.verdict_GQ == sign).any()):
                    found.append(_groups_table(groups, sign, title + after))
        return found

    def sentences(self) -> list[str]:
        """How many groups x pairs conflict, and on how much it rests."""
        found = []
        for metric in self.metrics:
            against, together, tested = metric.grouping(self.by).counts()
            after = AFTER_ADAM if metric.metric == "adam" else ""
            found.append(
                f"{against} of {tested} ({self.by}, pair of domains) combinations conflict beyond noise{after}; "
                f"{together} pull together, {tested - against - together} are within noise."
            )
        parts = (
            f"{domain} {prompts} prompts ({completions:,} completions)"
            for domain, prompts, completions in zip(self.domains, self.prompts, self.completions, strict=True)
        )
        found.append(
            f"Measured on {'; '.join(parts)}, in {self.batches} batches. False discovery rate {self.level:g}, for "
            "independent or positively dependent tests. Floor: |cosine| stays below it by noise alone. "
            "'-': lost in noise, more prompts are needed."
        )
        return [*found, self.note] if self.note else found


def conflicts(
    config: str | Path | Config,
    model: str | Path | None = None,
    *,
    domains: Sequence[str] | None = None,
    by: str | None = None,
    prompts: int = 128,
    samples: int = 8,
    batches: int = 16,
    completions: Path | None = None,
    seed: int = 0,
    rows: int = 32,
    memory_gib: float = 4.0,
    on_progress: Progress = silent,
) -> Conflicts:
    """Conflicts between the policy gradients of domains at a model; after Adam too where its state was saved.

    Args:
        config: a configuration or a run directory, which defines the domains.
        model: a checkpoint folder, a hub id or ``pocket``; the configuration's own model where it is None.
        domains: names of at least two; None means all.
        by: the grouping that tables show: ``layer``, ``module``, ``tensor``, or a function of one's own as
            ``package.module:function``. By default the configuration's own where it is one of these, else ``module``.
        prompts: training prompts sampled per domain, with ``samples`` completions of each.
        samples: see ``prompts``.
        batches: batches of each domain, none of which share a prompt; 8 or 16 are good numbers.
        completions: a file that an analysis saved, instead of sampling.
        seed: of sampling.
        rows: completions in one backward pass.
        memory_gib: memory for running sums of gradients; less of it takes more passes over the completions.
        on_progress: called with what is being done, steps done and in total.

    Raises:
        ConfigError: a bad configuration or an unknown domain.
        ModelError: no model there, or nothing to train in it.
        GroupingError: an unknown grouping, or a parameter that a grouping has no group for.
        CounterpointError: too few domains, batches or prompts, a gradient that is not finite, or too little memory.
    """
    config = config if isinstance(config, Config) else config_of(config)
    subject, groupings = _opened(config, model, domains, by, batches)
    state, reason = (None, "") if model is None else state_beside(model, subject.model)
    rollouts = completions_for(
        subject,
        file=completions,
        prompts=prompts,
        samples=samples,
        seed=seed,
        at_least=batches,
        on_progress=on_progress,
    )
    found = conflicts_of(
        subject.model,
        rollouts,
        groupings=groupings,
        batches=batches,
        optimizer_state=state,
        rows=rows,
        memory_gib=memory_gib,
        on_progress=on_progress,
    )
    return replace(found, note=f"Not measured after Adam: {reason}" if reason else "")


def _opened(
    config: Config, model: str | Path | None, domains: Sequence[str] | None, by: str | None, batches: int
) -> tuple[Subject, tuple[str, ...]]:
    """The model, and the groupings to measure, the one that tables show first; refusals before anything is sampled."""
    splits_of(batches)
    if domains is not None and len(set(domains)) < 2:
        raise CounterpointError(f"domains={list(domains)}: a conflict is between two domains. Name another.")
    subject = open_subject(config, model, domains)
    own = own_grouping(config)
    shown = by or ("module" if own in ("global", "layer") else own)
    group_parameters(subject.model, shown)
    return subject, tuple(dict.fromkeys([shown, *GROUPINGS, own]))


def own_grouping(config: Config) -> str:
    """The grouping that the configuration trains with; ``module`` where it does no surgery."""
    return "module" if config.strategy.sequential else str(resolve_strategy(config.strategy.spec).grouping)


def conflicts_of(
    model: Any,
    rollouts: Mapping[str, Rollouts],
    *,
    groupings: Sequence[str] = ("module", *GROUPINGS),
    batches: int = 16,
    optimizer_state: Mapping[str, Any] | None = None,
    level: float = 0.05,
    rows: int = 32,
    memory_gib: float = 4.0,
    on_progress: Progress = silent,
) -> Conflicts:
    """As ``conflicts``, of a model in memory on completions by domain.

    Args:
        model: a causal language model. Dropout is off while it is measured; ``.grad`` and its mode stay as they are.
        rollouts: completions, best of this very model (``sample_rollouts``).
        groupings: any of global, layer, module, tensor, and any of one's own as ``package.module:function``; tables
            show the first.
        batches: batches of each domain, none of which share a prompt.
        optimizer_state: of Adam (``read_optimizer``); everything is then measured in its metric too.
        level: the false discovery rate, and one minus the confidence of intervals.
        rows, memory_gib, on_progress: as for ``conflicts``.
    """
    groupings = tuple(dict.fromkeys(groupings))
    source = PolicyGradients(model, rollouts, batches, rows)
    metrics = {} if optimizer_state is None else {"adam": adam_metric(optimizer_state, source.shapes)}
    training = model.training
    model.eval()
    try:
        found = measure(
            source,
            groupings=groupings,
            metrics=metrics,
            level=level,
            memory_gib=memory_gib,
            on_progress=on_progress,
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CounterpointError(
            f"Out of memory with rows={rows} completions in one backward pass and memory_gib={memory_gib:g} for sums "
            "of gradients. Lower either."
        ) from error
    finally:
        model.train(training)
    return Conflicts(source.domains, source.prompts, source.completions, batches, level, found, groupings[0])


def measure(
    source: GradientSource,
    *,
    groupings: Sequence[str] = tuple(GROUPINGS),
    metrics: Mapping[str, Mapping[str, Tensor]] | None = None,
    level: float = 0.05,
    memory_gib: float = 4.0,
    on_progress: Progress = silent,
) -> tuple[MetricConflicts, ...]:
    """The whole analysis on any source of gradients: under ``gradient`` and every one of ``metrics``.

    ``metrics`` holds the positive diagonal of each metric by parameter; the other arguments are as in ``conflicts_of``.
    """
    splits = splits_of(source.num_batches)
    for name in groupings:  # before long work: is it known, and has it a group for every parameter?
        group_parameters(source.shapes, name, anatomy=source.anatomy)
    grams = collect(
        source,
        splits,
        metrics,
        groupings=[name for name in groupings if name not in GROUPINGS],
        memory_gib=memory_gib,
        on_progress=on_progress,
    )
    pairs = tuple((source.domains[i], source.domains[j]) for i, j in pairs_of(len(source.domains)))
    return tuple(
        MetricConflicts(gram.metric, tuple(_one_grouping(gram, name, pairs, level) for name in groupings))
        for gram in grams
    )


def _one_grouping(gram: SplitGrams, grouping: str, pairs: tuple[tuple[str, str], ...], level: float) -> GroupConflicts:
    index = gram.units.index(grouping)
    D = len({name for pair in pairs for name in pair})
    gram_GSS = sum_units(gram.grams_USS, index)
    tests = pair_tests(gram_GSS, D, level)
    own_GDKK = split_blocks(gram_GSS, D).diagonal(dim1=1, dim2=2).movedim(-1, 1)
    return GroupConflicts(
        grouping=grouping,
        groups=index.groups,
        pairs=pairs,
        cosine_GQ=tests.cosine,
        floor_GQ=tests.floor,
        debiased_GQ=tests.debiased,
        debiased_low_GQ=tests.low,
        debiased_high_GQ=tests.high,
        p_value_GQ=tests.p_value,
        verdict_GQ=verdicts(tests, level),
        split_half_GD=split_half(own_GDKK),
    )


_COSINES = ("cosine", "floor", "without noise")
_FORMS = {"cosine": "+.3f", "floor": ".3f", "without noise": "+.3f", "p": ".2g"}


def _pairs_table(domains: Sequence[str], metric: MetricConflicts, groups: GroupConflicts, after: str) -> Table:
    whole = next((one for one in metric.groupings if one.grouping == "global"), None)
    rows = []
    for q, pair in enumerate(groups.pairs):
        cells = _cosine_cells(whole, 0, q) if whole else (None, None, None)
        rows.append((" - ".join(pair), *cells, *groups.counts(q)))
    halves = whole.split_half_GD[0].tolist() if whole else []
    alone = ", ".join(f"{domain} {half:+.3f}" for domain, half in zip(domains, halves, strict=False))
    title = f"Whole model{after}, and {groups.grouping}s beyond noise"
    note = f"a domain with itself, half of its batches against the other half: {alone}" if alone else ""
    return Table(title, ("domains", *_COSINES, "conflict", "synergy", "of"), tuple(rows), _FORMS, note)


def _groups_table(groups: GroupConflicts, sign: int, title: str) -> Table:
    beyond = (groups.verdict_GQ == sign).nonzero().tolist()
    beyond.sort(key=lambda place: float(groups.p_value_GQ[*place]))
    rest = f" (the {MOST_ROWS} surest of {len(beyond)})" if len(beyond) > MOST_ROWS else ""
    rows = tuple(
        (groups.groups[g], " - ".join(groups.pairs[q]), *_cosine_cells(groups, g, q), float(groups.p_value_GQ[g, q]))
        for g, q in beyond[:MOST_ROWS]
    )
    return Table(title + rest, (groups.grouping, "domains", *_COSINES, "p"), rows, _FORMS)


def _cosine_cells(groups: GroupConflicts, g: int, q: int) -> tuple[Cell, ...]:
    """Cosine, floor, and the cosine without noise; None where noise hides it."""
    values = (groups.debiased_GQ, groups.debiased_low_GQ, groups.debiased_high_GQ)
    debiased = Estimate(*(float(value[g, q]) for value in values))
    known = None if math.isnan(debiased.value) else debiased
    return float(groups.cosine_GQ[g, q]), float(groups.floor_GQ[g, q]), known

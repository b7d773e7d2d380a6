"""Which parts of a model are pulled apart by which domains, beyond what sampling noise explains.

Legend: D domains, Q pairs, G groups, U units, S splits of all domains, N batches.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from counterpoint.diagnosis._chance import pairs_of
from counterpoint.diagnosis.conflict_analysis.controls import run_controls, verdicts
from counterpoint.diagnosis.conflict_analysis.gradients import GradientSource, PolicyGradients
from counterpoint.diagnosis.conflict_analysis.grams import GradientGrams, check_splits, collect
from counterpoint.diagnosis.conflict_analysis.metric import adam_metric
from counterpoint.diagnosis.conflict_analysis.noise import Moments, pair_tests, split_blocks, split_half
from counterpoint.diagnosis.conflict_analysis.results import Conflicts, GroupConflicts, HeatMap, MetricConflicts
from counterpoint.diagnosis.rollouts import Rollouts
from counterpoint.errors import CounterpointError
from counterpoint.models import is_out_of_memory
from counterpoint.surgery import GROUPINGS, group_parameters
from counterpoint.surgery.units import sum_units

Progress = Callable[[str, int, int], None]


def conflicts(
    model: Any,
    rollouts_by_domain: Mapping[str, Rollouts],
    *,
    groupings: Sequence[str] = tuple(GROUPINGS),
    batches: int = 16,
    splits: int | None = None,
    optimizer_state: Mapping[str, Any] | None = None,
    level: float = 0.05,
    repeats: int = 20,
    seed: int = 0,
    rows: int = 32,
    memory_gib: float = 4.0,
    on_progress: Progress = lambda what, done, total: None,
) -> Conflicts:
    """Conflicts between the policy gradients of domains at ``model``, on fixed completions and advantages.

    Args:
        model: a causal language model. Dropout is off while it is measured; ``.grad`` and its mode stay as they are.
        rollouts_by_domain: completions, best of this very model (``sample_rollouts``).
        groupings: any of global, layer, module, tensor, and any of your own as ``package.module:function``.
        batches: batches of each domain, none of which share a prompt.
        splits: independent splits the batches are gathered in; a divisor of ``batches`` (up to 16 by default).
        optimizer_state: of Adam (``read_optimizer``); everything is then measured in its metric too.
        level: the false discovery rate, and one minus the confidence of intervals.
        repeats: draws of each control.
        seed: of the controls.
        rows: completions in one backward pass.
        memory_gib: memory for running sums of gradients; less of it takes more passes over the completions.
        on_progress: called as ``("gradients", done, total)``.

    Raises:
        CounterpointError: too few domains, batches or prompts (says how many are needed), a gradient that is not
            finite, or too little memory (says which option lowers it).
        GroupingError: an unknown grouping, or a parameter that a grouping has no group for.
        ModelError: nothing to train, or an optimizer state that does not fit.
    """
    source = PolicyGradients(model, rollouts_by_domain, batches, rows)
    metric = {} if optimizer_state is None else {"adam": adam_metric(optimizer_state, source.shapes)}
    training = model.training
    model.eval()
    try:
        found = measure(
            source,
            groupings=groupings,
            splits=splits,
            metrics=metric,
            level=level,
            repeats=repeats,
            seed=seed,
            memory_gib=memory_gib,
            on_progress=on_progress,
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CounterpointError(
            f"Out of memory with {rows} completions in one backward pass and {memory_gib:g} GiB for sums of gradients. "
            "Lower either: rows (--rows), memory_gib (--memory-gib)."
        ) from error
    finally:
        model.train(training)
    return Conflicts(
        source.domains,
        source.prompts,
        source.completions,
        batches,
        check_splits(batches, splits),
        level,
        found,
    )


def measure(
    source: GradientSource,
    *,
    groupings: Sequence[str] = tuple(GROUPINGS),
    splits: int | None = None,
    metrics: Mapping[str, Mapping[str, Tensor]] | None = None,
    level: float = 0.05,
    repeats: int = 20,
    seed: int = 0,
    memory_gib: float = 4.0,
    on_progress: Progress = lambda what, done, total: None,
) -> tuple[MetricConflicts, ...]:
    """The whole analysis on any source of gradients: under ``gradient`` and every one of ``metrics``.

    ``metrics`` holds the positive diagonal of each metric by parameter; the other arguments are as in ``conflicts``.
    """
    num_splits = check_splits(source.num_batches, splits)
    for name in groupings:  # before long work: is it known, and has it a group for every parameter?
        group_parameters(source.shapes, name, anatomy=source.anatomy)
    grams = collect(
        source,
        num_splits,
        {name: {key: value.sqrt() for key, value in metric.items()} for name, metric in (metrics or {}).items()},
        groupings=[name for name in groupings if name not in GROUPINGS],
        memory_gib=memory_gib,
        on_progress=on_progress,
    )
    pairs = tuple((source.domains[i], source.domains[j]) for i, j in pairs_of(len(source.domains)))
    result = []
    for gram in grams:
        found = tuple(_one_grouping(gram, name, pairs, level, repeats, seed) for name in groupings)
        heat_map = next((_heat_map(one) for one in found if one.grouping == "module"), None)
        result.append(MetricConflicts(gram.metric, found, heat_map))
    return tuple(result)


def _one_grouping(
    gram: GradientGrams, grouping: str, pairs: tuple[tuple[str, str], ...], level: float, repeats: int, seed: int
) -> GroupConflicts:
    index = gram.units.index(grouping)
    D = gram.batches_NUDD.shape[-1]
    splits_GSS = sum_units(gram.splits_USS, index)
    tests = pair_tests(splits_GSS, D, level)
    verdict_GQ = verdicts(tests, level)
    own_GDKK = split_blocks(splits_GSS, D).diagonal(dim1=1, dim2=2).movedim(-1, 1)
    first, second = (list(side) for side in zip(*pairs_of(D), strict=True))
    moments = Moments()
    for batch_UDD in gram.batches_NUDD:
        moments.add(sum_units(batch_UDD, index)[:, first, second])
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
        verdict_GQ=verdict_GQ,
        split_half_GD=split_half(own_GDKK),
        batch_product_GQ=moments.mean,
        batch_deviation_GQ=moments.deviation,
        batch_negative_GQ=moments.negative,
        tested=int(tests.p_value.isfinite().sum()),
        conflicts=int((verdict_GQ < 0).sum()),
        synergies=int((verdict_GQ > 0).sum()),
        controls=run_controls(splits_GSS, D, level, repeats, seed),
    )


def _heat_map(found: GroupConflicts) -> HeatMap:
    places = [re.fullmatch(r"layers\.(\d+)\.(.+)", group) for group in found.groups]
    layers = tuple(sorted({int(place[1]) for place in places if place}))
    modules = tuple(dict.fromkeys(place[2] for place in places if place))
    shape = (len(found.pairs), len(layers), len(modules))
    cosine_QLB, debiased_QLB = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    verdict_QLB = torch.zeros(shape, dtype=torch.int64)
    for g, place in enumerate(places):
        if place:
            cell = (slice(None), layers.index(int(place[1])), modules.index(place[2]))
            cosine_QLB[cell] = found.cosine_GQ[g].float()
            debiased_QLB[cell] = found.debiased_GQ[g].float()
            verdict_QLB[cell] = found.verdict_GQ[g]
    return HeatMap(layers, modules, found.pairs, cosine_QLB, debiased_QLB, verdict_QLB)

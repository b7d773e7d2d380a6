"""Reads from the JSON of the parts what the summary and its sentences say about one pair of domains.

Every function returns what was found, or a text that says why it cannot be told.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from counterpoint.diagnosis.whole_run.results import (
    ModuleConflict,
    ModuleDamage,
    ModuleEdit,
    PairConflict,
    PairDamage,
    PairOverlap,
    StageEdit,
)
from counterpoint.diagnosis.whole_run.sentences import ConflictFacts, DamageFacts, OverlapFacts
from counterpoint.stats import Estimate

Result = Mapping[str, Any]


def estimate(value: Result | None) -> Estimate | None:
    """An estimate as it was written; None where it, or a bound, could not be computed."""
    if value is None or None in (value["value"], value["low"], value["high"]):
        return None
    return Estimate(value["value"], value["low"], value["high"])


def damage_of(result: Result) -> PairDamage | str:
    """The numbers of one ``damage-A-B.json``."""
    measured, first, second = (estimate(result[key]) for key in ("measured", "first", "second"))
    if measured is None or first is None or second is None:
        return result["stopped"] or "the measurement stopped early."
    modules = tuple(
        ModuleDamage(row["module"], found, row["edit_share"])
        for row in result["modules"]
        if (found := estimate(row["second"])) is not None
    )
    return PairDamage(measured, first, second, estimate(result["fisher"]), modules)


def damage_facts(found: PairDamage) -> DamageFacts:
    """What the sentence needs: the module with the largest part of the damage that curvature does, if it is sure."""
    harm = sum(max(0.0, row.second.value) for row in found.modules)
    sure = [row for row in found.modules if row.second.low > 0]
    if not sure:
        return DamageFacts(found.measured, found.first.value, found.second.value)
    top = max(sure, key=lambda row: row.second.value)
    share = top.second.value / harm
    return DamageFacts(found.measured, found.first.value, found.second.value, top.module, share, top.edit_share)


def conflict_of(result: Result, step: int, moment: str, first: str, second: str) -> PairConflict | str:
    """The pair's cosines in one ``conflicts-step-N.json``, of plain gradients."""
    groupings = {one["grouping"]: one for one in result["metrics"][0]["groupings"]}
    whole, modules = groupings["global"], groupings["module"]
    pair = _index(whole["pairs"], first, second)
    if pair is None or whole["verdict_GQ"][0][pair] is None or whole["cosine_GQ"][0][pair] is None:
        return f"too few prompts of one of them had completions {moment} that differ in reward."
    cosine, floor = whole["cosine_GQ"][0][pair], whole["floor_GQ"][0][pair]
    keys = ("cosine_GQ", "floor_GQ", "debiased_GQ", "verdict_GQ")
    rows = [(name, *(modules[key][g][pair] for key in keys)) for g, name in enumerate(modules["groups"])]
    kept = tuple(
        ModuleConflict(name, value, noise, debiased, int(verdict))
        for name, value, noise, debiased, verdict in rows
        if value is not None and noise is not None
    )
    return PairConflict(step, moment, cosine, floor, int(whole["verdict_GQ"][0][pair]), kept)


def conflict_facts(found: PairConflict) -> ConflictFacts:
    """What the sentence needs."""
    beyond = [module for module in found.modules if module.verdict]
    opposed = [module for module in beyond if module.verdict < 0]
    worst = min(opposed, key=lambda module: module.cosine) if opposed else None
    return ConflictFacts(
        at=found.moment,
        cosine=found.cosine,
        floor=found.floor,
        verdict=found.verdict,
        modules=len(found.modules),
        beyond=len(beyond),
        opposed=len(opposed),
        worst=(worst.module, worst.cosine) if worst else None,
    )


def routes_of(result: Result, first: str, second: str) -> PairOverlap | str:
    """The overlap of the pair's routes in one ``routes-step-N.json``, beside chance within layers."""
    for row in result["overlaps"]:
        same = {row["first"], row["second"]} == {first, second}
        if same and row["kind"] == "neuron" and row["fraction"] == result["fraction"]:
            return PairOverlap(row["fraction"], row["jaccard"], row["chance_in_layers"], row["p_value_in_layers"])
    return "the routes of both were not measured."


def edits_of(result: Result, first: int, second: int) -> PairOverlap | str:
    """The overlap of the neurons that stages number ``first`` and ``second`` changed most, beside chance in layers."""
    names = [found["name"] for found in result["checkpoints"]]
    for row in result["pairs"]:
        if {row["first"], row["second"]} == {names[first], names[second]} and row["overlap"]:
            if not row["overlap"]["first"] or not row["overlap"]["second"]:
                return "one of the two changed no MLP neuron."
            chance = row["overlap"]["within_layers"]
            return PairOverlap(result["top_share"], row["overlap"]["jaccard"], chance["jaccard"], chance["p_value"])
    return "the model has no MLP neurons that are known here."


def overlap_facts(found: PairOverlap) -> OverlapFacts:
    """What the sentence needs."""
    return OverlapFacts(found.jaccard, found.chance, found.p_value)


def stage_edits(result: Result, stages: Sequence[tuple[tuple[str, ...], int, int]]) -> tuple[StageEdit, ...]:
    """What every stage changed; ``stages`` holds domains, first and last step in the order of the checkpoints."""
    return tuple(
        StageEdit(
            domains,
            first,
            last,
            found["sparsity"]["unchanged"],
            found["whole"]["relative_norm"],
            tuple(
                ModuleEdit(part["name"], part["relative_norm"])
                for part in found["modules"]
                if part["relative_norm"] is not None
            ),
        )
        for (domains, first, last), found in zip(stages, result["checkpoints"], strict=True)
    )


def _index(pairs: Sequence[Sequence[str]], first: str, second: str) -> int | None:
    return next((q for q, pair in enumerate(pairs) if set(pair) == {first, second}), None)

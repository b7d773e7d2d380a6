"""Puts the parts of a diagnosis together, pair by pair, and says in two sentences what they found."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from counterpoint.diagnosis.whole_run.facts import (
    Result,
    conflict_facts,
    conflict_of,
    damage_facts,
    damage_of,
    edits_of,
    estimate,
    overlap_facts,
    routes_of,
    stage_edits,
)
from counterpoint.diagnosis.whole_run.parts import PartDone
from counterpoint.diagnosis.whole_run.points import Leg
from counterpoint.diagnosis.whole_run.results import Pair, Summary, Total
from counterpoint.diagnosis.whole_run.sentences import UNKNOWN, PairFindings, pair_sentences, total_sentence

TOGETHER = "both were trained in the same stage."


class Findings:
    """The results of the parts by name, and why others are missing."""

    def __init__(self, results: Mapping[str, Result], done: Sequence[PartDone]) -> None:
        self.results = results
        self.done = {part.name: part for part in done}

    def get(self, name: str, read: Callable[[Result], Any]) -> Any:
        """What ``read`` makes of the part ``name``; a text that says why where it is missing."""
        if name in self.results:
            return read(self.results[name])
        part = self.done.get(name)
        return part.reason if part else "it was not measured."

    def named(self, **about: Any) -> PartDone | None:
        """The part that is about exactly this."""
        return next((part for part in self.done.values() if dict(part.about) == about), None)


def summarise(run: str, legs: Sequence[Leg], done: Sequence[PartDone], results: Mapping[str, Result]) -> Summary:
    """The summary of finished parts, whose JSON ``results`` holds by name. Options and seconds are left out."""
    findings = Findings(results, done)
    pairs = [
        _pair(findings, legs, number, earlier, later)
        for number, leg in enumerate(legs)
        for earlier in leg.earlier
        for later in leg.stage.domains
    ]
    if len(legs) == 1:
        names = legs[0].stage.domains
        pairs += [_together(findings, legs[0], a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    stages = [(leg.stage.domains, leg.start.step, leg.end.step) for leg in legs]
    edits = stage_edits(results["edits"], stages) if _whole(findings, legs) else ()
    behaviour = results.get("behaviour", {})
    return Summary(
        run=run,
        options={},
        seconds=0.0,
        parts=tuple(done),
        pairs=tuple(pairs),
        totals=tuple(_total(findings, part) for part in done if _spans_stages(part, legs)),
        edits=edits,
        sentences=tuple(behaviour.get("sentences", ())),
        notes=tuple(behaviour.get("notes", ())),
    )


def _whole(findings: Findings, legs: Sequence[Leg]) -> bool:
    """Whether the edits are those of the legs: with a checkpoint missing, one edit spans several stages."""
    found = findings.results.get("edits")
    return found is not None and len(found["checkpoints"]) == len(legs)


def _spans_stages(part: PartDone, legs: Sequence[Leg]) -> bool:
    """Whether the part is the damage of several stages together."""
    spans = [(leg.start.step, leg.end.step) for leg in legs]
    return part.kind == "damage" and (part.about["first_step"], part.about["last_step"]) not in spans


def _total(findings: Findings, part: PartDone) -> Total:
    about, damage = part.about, findings.get(part.name, damage_of)
    later = tuple(about["later"])
    sentence = total_sentence(about["domain"], later, damage if isinstance(damage, str) else damage_facts(damage))
    return Total(about["domain"], later, about["first_step"], about["last_step"], sentence, _kept(damage))


def _pair(findings: Findings, legs: Sequence[Leg], number: int, earlier: str, later: str) -> Pair:
    leg = legs[number]
    change = findings.get("behaviour", lambda found: _change_of(found, earlier, leg.start.step))
    part = findings.named(
        domain=earlier, later=list(leg.stage.domains), first_step=leg.start.step, last_step=leg.end.step
    )
    damage = findings.get(part.name if part else "", damage_of)
    conflict, routes = _at(findings, leg.start.step, leg.start.moment, earlier, later)
    edits = _edits(findings, legs, number, earlier)
    known = not isinstance(change, str)
    verdict = change["verdict"] if known else UNKNOWN + change
    found = PairFindings(
        earlier=earlier,
        later=later,
        change=_estimate(change["change"]) if known else change,
        verdict=verdict,
        damage=damage if isinstance(damage, str) else damage_facts(damage),
        conflict=conflict if isinstance(conflict, str) else conflict_facts(conflict),
        edits=edits if isinstance(edits, str) else overlap_facts(edits),
        routes=routes if isinstance(routes, str) else overlap_facts(routes),
    )
    outcome, mechanism = pair_sentences(found)
    return Pair(
        earlier=earlier,
        later=later,
        together=False,
        first_step=leg.start.step,
        last_step=leg.end.step,
        change=_estimate(change["change"]) if known else None,
        corrected=_estimate(change["corrected"]) if known else None,
        verdict=verdict,
        outcome=outcome,
        mechanism=mechanism,
        damage=_kept(damage),
        conflict=_kept(conflict),
        edits=_kept(edits),
        routes=_kept(routes),
    )


def _together(findings: Findings, leg: Leg, first: str, second: str) -> Pair:
    """Two domains of one stage: gradients and routes can be told, who changed whom cannot."""
    conflict, routes = _at(findings, leg.end.step, leg.end.moment, first, second)
    found = PairFindings(
        earlier=first,
        later=second,
        change=TOGETHER,
        verdict=UNKNOWN + TOGETHER,
        damage=TOGETHER,
        conflict=conflict if isinstance(conflict, str) else conflict_facts(conflict),
        edits=TOGETHER,
        routes=routes if isinstance(routes, str) else overlap_facts(routes),
        together=True,
    )
    outcome, mechanism = pair_sentences(found)
    return Pair(
        earlier=first,
        later=second,
        together=True,
        first_step=None,
        last_step=None,
        change=None,
        corrected=None,
        verdict=found.verdict,
        outcome=outcome,
        mechanism=mechanism,
        damage=None,
        conflict=_kept(conflict),
        edits=None,
        routes=_kept(routes),
    )


def _at(findings: Findings, step: int, moment: str, first: str, second: str) -> tuple[Any, Any]:
    """Conflict and overlap of routes of two domains at one checkpoint."""
    return (
        findings.get(f"conflicts-step-{step}", lambda found: conflict_of(found, step, moment, first, second)),
        findings.get(f"routes-step-{step}", lambda found: routes_of(found, first, second)),
    )


def _edits(findings: Findings, legs: Sequence[Leg], number: int, earlier: str) -> Any:
    """The overlap of the last stage that trained ``earlier`` before stage ``number``, and that stage."""
    own = max((i for i, leg in enumerate(legs[:number]) if earlier in leg.stage.domains), default=None)
    if own is None or ("edits" in findings.results and not _whole(findings, legs)):
        return "a checkpoint between the stages is gone."
    return findings.get("edits", lambda found: edits_of(found, own, number))


def _change_of(behaviour: Result, domain: str, first_step: int) -> Any:
    for change in behaviour["changes"]:
        if change["domain"] == domain and change["first_step"] == first_step:
            return change
    return f"{domain} was not evaluated before and after."


def _estimate(value: Result) -> Any:
    found = estimate(value)
    assert found is not None, "changes always have an interval"
    return found


def _kept(found: Any) -> Any:
    return None if isinstance(found, str) else found

"""What a diagnosis found, pair by pair: one row, one sentence, and one line for each analysis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from counterpoint.diagnosis._course import Course, Leg
from counterpoint.diagnosis._findings import PairConflict, PairOverlap, PartFindings
from counterpoint.diagnosis._parts import PartDone
from counterpoint.diagnosis._words import gained, lost, not_excluded, signed
from counterpoint.diagnosis.behaviour import NOISE, Behaviour, Change, changes_table
from counterpoint.diagnosis.damage import Damage
from counterpoint.results import Result
from counterpoint.stats import Estimate
from counterpoint.tables import Table

SIGNIFICANT = 0.05

TOGETHER = "both were trained in the same stage"


@dataclass(frozen=True)
class Pair:
    """Two domains: ``earlier`` was trained before ``later``, or in the same stage (``together``).

    ``change`` is that of the earlier domain's score over the later one's stage, as in ``behaviour.json``. ``sentence``
    says it; ``found`` names what was found beyond noise: ``score``,
    ``damage``, ``conflict``; ``place`` is where most of curvature's damage sits. What is None was not measured:
    ``missing`` says why.
    """

    earlier: str
    later: str
    stage: str
    sentence: str
    details: tuple[str, ...]
    found: tuple[str, ...]
    missing: Mapping[str, str]
    conflict: PairConflict | None
    routes: PairOverlap | None
    together: bool = False
    first_step: int | None = None
    change: Change | None = None
    place: str = ""
    damage: Damage | None = None
    edits: PairOverlap | None = None


@dataclass(frozen=True)
class Stretch:
    """One stage: its name, and by module its edit's norm over that of the weights, where that was measured."""

    stage: str
    modules: Mapping[str, float] | None


@dataclass(frozen=True)
class Summary(Result):
    """Everything that a diagnosis found, beside the behaviour in full, which is ``behaviour.json``."""

    kind: ClassVar[str] = "summary"

    run: str
    domains: tuple[str, ...]
    options: Mapping[str, Any]
    seconds: float
    parts: tuple[PartDone, ...]
    changes: tuple[Change, ...]
    pairs: tuple[Pair, ...]
    stages: tuple[Stretch, ...]
    verdicts: tuple[str, ...]
    """What fell, was forgotten or learned less than alone."""

    notes: tuple[str, ...]

    @property
    def failed(self) -> tuple[PartDone, ...]:
        """The analyses that could not be made."""
        return tuple(part for part in self.parts if part.status == "failed")

    def tables(self) -> list[Table]:
        """Every domain's change over every stage; and the pairs of an earlier and a later domain, a row each."""
        note = (
            "damage: loss per token that the later stage adds to the earlier domain. cosine: of their gradients before "
            "it. edits, routes: Jaccard overlap of neurons (chance). * beyond noise, as is a damage whose interval "
            "leaves 0 out; - not measured."
        )
        columns = ("pair", "damage", "cosine", "edits", "routes")
        rows = tuple(_row(pair) for pair in self.pairs)
        pairs = Table("Later stage on earlier domain", columns, rows, {"damage": "+.2g"}, note)
        return [table for table in (changes_table(self.domains, self.changes), pairs) if table.rows]

    def sentences(self) -> tuple[str, ...]:
        """The verdicts first, then the pairs in which something was found, then what is missing."""
        found = [text for pair in self.pairs if pair.found for text in (pair.sentence, *pair.details)]
        missing = [f"{part.name}: not measured ({part.reason.rstrip('.')})." for part in self.failed]
        return (*self.verdicts, *found, *self.notes, *missing)


@dataclass(frozen=True)
class Findings:
    """What the parts found by their name, and how each went."""

    course: Course
    done: Mapping[str, PartDone]
    found: Mapping[str, Any]

    def get(self, name: str) -> tuple[Any, str]:
        """A part's findings; None, and why, where it was not measured."""
        if (found := self.found.get(name)) is not None:
            return found, ""
        return None, self.done[name].reason if name in self.done else "it was not planned."

    def damage(self, **about: Any) -> tuple[Damage | None, str]:
        """The damage that is about exactly this."""
        part = next((p for p in self.done.values() if p.kind == "damage" and dict(p.about) == about), None)
        found, why = self.get(part.name) if part else (None, "no checkpoint after the stage is left.")
        if found is not None and not found.is_whole:
            return None, found.stopped or "the measurement stopped early."
        return found, why


def summarise(
    course: Course, done: Sequence[PartDone], found: Mapping[str, Any], options: Mapping[str, Any], seconds: float
) -> Summary:
    """The summary of finished parts, whose findings ``found`` holds by name."""
    findings = Findings(course, {part.name: part for part in done}, found)
    pairs = [
        _pair(findings, number, earlier, later)
        for number, leg in enumerate(course.legs)
        for earlier in leg.earlier
        for later in leg.stage.domains
    ]
    if len(course.legs) == 1 and not pairs:
        leg = course.legs[0]
        names = leg.stage.domains
        pairs = [_together(findings, leg, a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    behaviour: Behaviour | None = found.get("behaviour")
    forgotten = behaviour.forgetting if behaviour else ()
    verdicts = behaviour.verdicts() if behaviour else ()
    if any(item.verdict in ("forgetting", "fell") for item in forgotten):
        verdicts = (*verdicts, f"To get it back: {course.remedy}")
    edits, _ = edits_by_leg(findings)
    return Summary(
        run=course.name,
        domains=tuple(course.config.domains),
        options=options,
        seconds=seconds,
        parts=tuple(done),
        changes=behaviour.changes if behaviour else (),
        pairs=tuple(pairs),
        stages=tuple(Stretch(leg.name, edits.edits[i] if edits else None) for i, leg in enumerate(course.legs)),
        verdicts=verdicts,
        notes=behaviour.notes if behaviour else (),
    )


def edits_by_leg(findings: Findings) -> tuple[PartFindings | None, str]:
    """The edits, where they are those of the legs: with a checkpoint gone, one edit spans several stages."""
    found, why = findings.get("edits")
    if found is not None and len(found.edits) != len(findings.course.legs):
        return None, "a checkpoint between the stages is gone."
    return found, why


def _pair(findings: Findings, number: int, earlier: str, later: str) -> Pair:
    leg = findings.course.legs[number]
    behaviour, reason = findings.get("behaviour")
    change = behaviour.change(earlier, leg.start.step) if behaviour else None
    damage, no_damage = findings.damage(
        domain=earlier, later=list(leg.stage.domains), first_step=leg.start.step, last_step=leg.end.step
    )
    conflict, routes, missing = _at(findings, leg.start.name, earlier, later)
    edits, no_edits = _edit_overlap(findings, number, earlier)
    if change is None:
        missing["score"] = reason or f"{earlier} was not evaluated before and after."
    missing |= {name: why for name, why in (("damage", no_damage), ("edits", no_edits)) if why}
    place = damage.place if damage else None
    remedy = f" To get it back: {findings.course.remedy}" if change and change.verdict == "fell" else ""
    return Pair(
        earlier=earlier,
        later=later,
        stage=leg.name,
        first_step=leg.start.step,
        change=change,
        sentence=_outcome(earlier, leg, change, missing) + remedy,
        details=_details(damage, conflict, edits, routes, missing, leg.start.moment),
        found=_found(change, damage, conflict),
        place=f"{place[1]:.0%} in {place[0]}" if place else "",
        damage=damage,
        conflict=conflict,
        edits=edits,
        routes=routes,
        missing=missing,
    )


def _together(findings: Findings, leg: Leg, first: str, second: str) -> Pair:
    """Two domains of one stage: gradients and routes are known, who changed whom is not."""
    conflict, routes, missing = _at(findings, leg.end.name, first, second)
    missing |= dict.fromkeys(("score", "damage", "edits"), f"{TOGETHER}.")
    about = {name: why for name, why in missing.items() if name in ("conflict", "routes")}
    return Pair(
        earlier=first,
        later=second,
        stage=leg.name,
        together=True,
        sentence=f"{first} and {second}: what one did to the other is not measured ({TOGETHER}).",
        details=_details(None, conflict, None, routes, about, leg.end.moment),
        found=_found(None, None, conflict),
        conflict=conflict,
        routes=routes,
        missing=missing,
    )


def _at(
    findings: Findings, point: str, first: str, second: str
) -> tuple[PairConflict | None, PairOverlap | None, dict[str, str]]:
    """Conflict and overlap of routes of two domains at one checkpoint, and why one is missing."""
    conflicts, no_conflicts = findings.get(f"conflicts-{point}")
    routes, no_routes = findings.get(f"routes-{point}")
    conflict = _of_both(conflicts.pairs if conflicts else (), first, second)
    overlap = _of_both(routes.overlaps if routes else (), first, second)
    missing = {}
    if conflict is None:
        missing["conflict"] = no_conflicts or "too few prompts of one of them had completions that differ in reward."
    if overlap is None:
        missing["routes"] = no_routes or "the routes of both were not measured."
    return conflict, overlap, missing


def _edit_overlap(findings: Findings, number: int, earlier: str) -> tuple[PairOverlap | None, str]:
    """The overlap of the last stage that trained ``earlier`` before stage ``number``, and that stage."""
    legs = findings.course.legs
    own = max((i for i, leg in enumerate(legs[:number]) if earlier in leg.stage.domains), default=None)
    if own is None:
        return None, f"no checkpoint before {earlier}'s own stage is known."
    found, why = edits_by_leg(findings)
    if found is None:
        return None, why
    overlap = _of_both(found.overlaps, str(own), str(number))
    return overlap, "" if overlap else "one of the two changed no MLP neuron, or the model has none that is known here."


def _of_both(rows: Sequence[Any], first: str, second: str) -> Any:
    return next((row for row in rows if {row.first, row.second} == {first, second}), None)


def _found(change: Change | None, damage: Damage | None, conflict: PairConflict | None) -> tuple[str, ...]:
    known = {
        "score": change is not None and change.verdict != NOISE,
        "damage": damage is not None and damage.measured is not None and damage.measured.low > 0,
        "conflict": conflict is not None and (conflict.verdict < 0 or bool(conflict.opposed)),
    }
    return tuple(name for name, holds in known.items() if holds)


def _outcome(earlier: str, leg: Leg, change: Change | None, missing: Mapping[str, str]) -> str:
    when = f"in the {leg.name}" if leg.stage.kind == "refresh" else f"while {leg.name} was trained"
    when = f"over the {leg.name}" if leg.name == "later training" else when
    if change is None:
        return f"{earlier} {when}: change of score not measured ({missing['score'].rstrip('.')})."
    if change.verdict == "fell":
        return f"{earlier} lost {lost(change.corrected)} {when}, beyond noise."
    if change.verdict == "rose":
        return f"{earlier} gained {gained(change.corrected)} {when}, beyond noise."
    return f"{earlier} changed by {signed(change.corrected)} {when}: {not_excluded(change.corrected)}."


def _details(
    damage: Damage | None,
    conflict: PairConflict | None,
    edits: PairOverlap | None,
    routes: PairOverlap | None,
    missing: Mapping[str, str],
    moment: str,
) -> tuple[str, ...]:
    """One line per analysis, in one template: what it is, a number, its level of noise; or why it is missing."""
    lines = []
    if damage is not None or "damage" in missing:
        lines.append(_damage_line(damage, missing.get("damage", "")))
    if conflict is not None:
        lines.append(f"Conflicts ({moment}): {_conflict_words(conflict)}.")
    if edits is not None:
        lines.append(f"Neurons that both changed most: {_overlap_words(edits)}.")
    if routes is not None:
        lines.append(f"Neurons that both use most ({moment}): {_overlap_words(routes)}.")
    names = {"conflict": "Conflicts", "edits": "Neurons that both changed most", "routes": "Neurons that both use most"}
    lines += [f"{names[key]}: not measured ({why.rstrip('.')})." for key, why in missing.items() if key in names]
    return tuple(lines)


def _damage_line(damage: Damage | None, missing: str) -> str:
    if damage is None or damage.measured is None or damage.first is None or damage.second is None:
        return f"Damage: not measured ({missing.rstrip('.')})."
    measured, second = damage.measured, damage.second.value
    predicted = damage.first.value + second
    beyond = "beyond noise" if measured.low * measured.high > 0 else "within noise"
    unit = "loss per token"
    if damage.options.surrogate == "likelihood":
        unit = "nats per token (-log p of its completions, all of them right)"
    text = f"Damage: {measured.value:+.3g} {unit} [{measured.low:+.3g}, {measured.high:+.3g}], {beyond}"
    if not damage.is_predicted:
        return f"{text}; the quadratic approximation does not predict it ({predicted:+.3g})."
    text = f"{text}; the quadratic approximation predicts {predicted:+.3g} ({second:+.3g} by curvature)"
    if damage.place is None or second <= 0:
        return f"{text}."
    module, share, of_edit = damage.place
    return f"{text}; {share:.0%} of curvature's part lies in {module}, which holds {of_edit:.0%} of the edit."


def _conflict_words(found: PairConflict) -> str:
    overall = {0: "none seen overall", -1: "opposed overall", 1: "aligned overall"}[found.verdict]
    text = f"{overall}, gradient cosine {found.cosine:+.3f} (noise: up to {found.floor:.3f})"
    if not found.opposed:
        return f"{text}; 0 of {len(found.modules)} modules in conflict"
    worst = found.opposed[0]
    count = f"{len(found.opposed)} of {len(found.modules)} modules in conflict"
    return f"{text}; {count}, most {worst.module} ({worst.cosine:+.2f})"


def _overlap_words(found: PairOverlap) -> str:
    p_value = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.2g}"
    level = "more than chance" if found.p_value < SIGNIFICANT else "no more than chance"
    return f"{level}, Jaccard {found.jaccard:.2f} (chance {found.chance:.2f}, {p_value})"


def _overlap_cell(found: PairOverlap) -> str:
    return f"{found.jaccard:.2f}{'*' if found.p_value < SIGNIFICANT else ''} ({found.chance:.2f})"


def _row(pair: Pair) -> tuple[str | float | Estimate | None, ...]:
    arrow = "\u00b7" if pair.together else "\u2192"
    conflict = pair.conflict
    return (
        f"{pair.later if pair.together else pair.stage} {arrow} {pair.earlier}",
        pair.damage.measured if pair.damage else None,
        f"{conflict.cosine:+.3f}{'*' if conflict.verdict else ''}" if conflict else None,
        *(_overlap_cell(found) if found else None for found in (pair.edits, pair.routes)),
    )

"""The sentence that says whether second order predicts an edit's damage, and how sure that is."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from counterpoint.diagnosis.damage_analysis.results import Damage


def verdict_of(damage: "Damage") -> str:
    """One to three plain sentences; "within noise" is an answer."""
    if damage.measured is None:
        return "Nothing was measured."
    measured = damage.measured
    found = f"{measured.value:+.3g} per token [{measured.low:+.3g}, {measured.high:+.3g}]"
    if measured.low <= 0 <= measured.high:
        first = f"The damage of {damage.domain} is within noise: {found} measured."
    elif measured.value < 0:
        first = f"The edit does not damage {damage.domain} but helps it: {found} measured."
    else:
        first = f"The edit damages {damage.domain}: {found} measured."
    return " ".join([first, *_prediction(damage)])


def _prediction(damage: "Damage") -> list[str]:
    if damage.range is None:
        return []
    (point,) = (point for point in damage.range.points if point.scale == 1)
    errors = f"{_percent(point.relative_error)} of the measured damage"
    if round(point.relative_error, 2) != round(point.term_error, 2):
        errors += f" and {_percent(point.term_error)} of the largest term"
    predicted = f"{point.predicted.value:+.3g} predicted, an error of {errors}"
    if point.term_error < damage.range.tolerance:
        sentence = f"First and second order predict it here: {predicted}."
    else:
        allowed = _percent(damage.range.tolerance)
        sentence = f"First and second order do not predict it here: {predicted}, where {allowed} is allowed."
        if point.within_noise:
            sentence += " The gap is within noise: other prompts could close it."
    return [sentence, _reach(damage)]


def _reach(damage: "Damage") -> str:
    assert damage.range is not None
    largest = damage.range.largest_scale
    if not largest:
        smallest = damage.range.points[0].scale
        return f"They fail already at {smallest:g} times the edit."
    beyond = " (the largest measured)" if largest == damage.range.points[-1].scale else ""
    return f"They hold up to {largest:g} times the edit{beyond}."


def _percent(share: float) -> str:
    if share >= 100:
        return "more than 10 000 %"
    text = f"{100 * share:.0f}" if share >= 1 else f"{100 * share:.1f}".removesuffix(".0")
    return f"{text} %"

"""What was found about two domains, in two plain sentences that say how sure they are. Pure functions to text.

The first sentence is about the outcome: how the earlier domain's score changed, and what the later edit does to its
loss. The second is about the mechanism: gradients, edits and routes. A number beyond noise is stated as such, all else
is "within noise" or "cannot be told: why". Nothing is called a cause: these are measurements on one run.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from counterpoint.stats import Estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from counterpoint.diagnosis.behaviour_analysis.scores import Forgetting, Rigidity

RELIABLE = 0.2
"""Second order "predicts" a damage where it errs by at most this share of the largest term, as in ``damage``. Ours."""

SIGNIFICANT = 0.05

UNKNOWN = "cannot be told: "


@dataclass(frozen=True)
class DamageFacts:
    """Loss of the earlier domain added by the later edit, per completion token: measured and predicted.

    ``first`` and ``second`` are the orders' terms; ``top_group`` is the module with most of the second-order damage,
    ``top_share`` its share, ``edit_share`` its share of the edit's squared norm: what even damage would give.
    """

    measured: Estimate
    first: float
    second: float
    top_group: str | None = None
    top_share: float | None = None
    edit_share: float | None = None


@dataclass(frozen=True)
class ConflictFacts:
    """Policy gradients of the two domains at one checkpoint.

    ``cosine`` over all parameters, ``floor`` what noise alone reaches in 1 of 20 cases, ``verdict`` -1 conflict, 1
    synergy, 0 within noise after correction; ``beyond`` of ``modules`` modules have a cosine beyond noise, ``opposed``
    of them a negative one; ``worst`` is the lowest of these with its cosine.
    """

    at: str
    cosine: float
    floor: float
    verdict: int
    modules: int
    beyond: int
    opposed: int
    worst: tuple[str, float] | None = None


@dataclass(frozen=True)
class OverlapFacts:
    """Jaccard overlap of two sets of units, the level of chance, and the chance of that much overlap or more."""

    jaccard: float
    chance: float
    p_value: float


@dataclass(frozen=True)
class PairFindings:
    """What is known about ``earlier``, trained before, and ``later``. A text stands for what cannot be told: why.

    ``change`` is the earlier domain's score change in the later one's stage, ``verdict`` as in ``behaviour``.
    """

    earlier: str
    later: str
    change: Estimate | str
    verdict: str
    damage: DamageFacts | str
    conflict: ConflictFacts | str
    edits: OverlapFacts | str
    routes: OverlapFacts | str
    together: bool = False
    """Trained in one stage: then only gradients and routes can be told."""


def pair_sentences(pair: PairFindings) -> tuple[str, str]:
    """The outcome and the mechanism, one sentence each."""
    if pair.together:
        outcome = (
            f"{pair.earlier} and {pair.later} were trained in one stage: what one did to the other cannot be told."
        )
        return outcome, f"{_conflict(pair)}; {_overlap(pair.routes, 'the routes that both use')}."
    outcome = f"{_score(pair)}; {_damage(pair.earlier, pair.later, pair.damage)}."
    mechanism = f"{_conflict(pair)}; {_overlaps(pair)}."
    return outcome, mechanism


def total_sentence(domain: str, later: "Sequence[str]", damage: DamageFacts | str) -> str:
    """What all later stages together do to ``domain``, from the end of its own stage to the end of the run."""
    return f"Taken together, {_damage(domain, _listed(later), damage)}."


def behaviour_sentences(forgotten: "Sequence[Forgetting]", rigid: "Sequence[Rigidity]") -> tuple[str, ...]:
    """One sentence for every domain's forgetting, as of the last stage that it shows in, and one for its rigidity."""
    last = {item.domain: item for item in forgotten}
    fallen = {item.domain: item for item in forgotten if item.verdict in ("forgetting", "fell")}
    return (
        *(_forgetting(fallen.get(domain, item)) for domain, item in last.items()),
        *(_rigidity(item) for item in rigid),
    )


def _score(pair: PairFindings) -> str:
    if isinstance(pair.change, str):
        return (
            f"How {pair.earlier}'s score changed while {pair.later} was trained cannot be told: {_reason(pair.change)}"
        )
    if pair.verdict in ("fell", "rose"):
        amount = f"{abs(100 * pair.change.value):.1f} points {_interval(pair.change)}"
        return f"{pair.earlier} {pair.verdict} by {amount} while {pair.later} was trained, beyond noise"
    return (
        f"{pair.earlier}'s score changed by {100 * pair.change.value:+.1f} points {_interval(pair.change)} while "
        f"{pair.later} was trained, {_noise(pair.change)}"
    )


def _damage(earlier: str, later: str, found: DamageFacts | str) -> str:
    if isinstance(found, str):
        return f"the damage done by the edit of {later} cannot be told: {_reason(found)}"
    measured = found.measured
    size = f"{measured.value:+.3g} [{measured.low:+.3g}, {measured.high:+.3g}]"
    if measured.low <= 0 <= measured.high:
        return f"the loss that the edit of {later} adds to {earlier}'s surrogate ({size} per token) is within noise"
    direction = "raises" if measured.value > 0 else "lowers"
    text = f"the edit of {later} {direction} {earlier}'s surrogate loss by {size} per token"
    predicted = found.first + found.second
    largest = max(abs(measured.value), abs(found.first), abs(found.second))
    if abs(predicted - measured.value) > RELIABLE * largest:
        return f"{text}, which its second-order expansion ({predicted:+.3g}) does not predict"
    text = f"{text}, of which its second-order expansion predicts {predicted:+.3g} ({found.second:+.3g} from curvature)"
    if found.second <= 0 or found.top_group is None or found.top_share is None:
        return text
    even = "" if found.edit_share is None else f", which holds {found.edit_share:.0%} of the edit"
    return f"{text}; {found.top_share:.0%} of the curvature's part lies in {found.top_group}{even}"


def _conflict(pair: PairFindings) -> str:
    found = pair.conflict
    names = f"{pair.earlier}'s and {pair.later}'s gradients"
    if isinstance(found, str):
        return f"Whether {names} conflict cannot be told: {_reason(found)}"
    cosine = f"cosine {found.cosine:+.3f}, noise alone up to {found.floor:.3f}"
    overall = {0: "within noise of right angles", -1: "opposed", 1: "aligned"}[found.verdict]
    text = f"{found.at.capitalize()}, {names} are {overall} as a whole ({cosine})"
    if not found.beyond:
        return f"{text} and within noise in each of {found.modules} modules"
    text = f"{text}, and beyond noise in {found.beyond} of {found.modules} modules, {found.opposed} of them opposed"
    return text if found.worst is None else f"{text} (most in {found.worst[0]}, cosine {found.worst[1]:+.3f})"


def _overlaps(pair: PairFindings) -> str:
    edits = _overlap(pair.edits, "the neurons that both changed most")
    routes = _overlap(pair.routes, "the routes that both use")
    return f"{edits}, and {routes}"


def _overlap(found: OverlapFacts | str, what: str) -> str:
    if isinstance(found, str):
        return f"whether {what} are shared cannot be told: {_reason(found)}"
    beyond = found.p_value < SIGNIFICANT
    level = "more than" if beyond else "no more than"
    chance = f"chance {found.chance:.2f}, p {_p(found.p_value)}"
    return f"{what} overlap {level} by chance (Jaccard {found.jaccard:.2f}, {chance})"


def _forgetting(item: "Forgetting") -> str:
    since = _listed(item.since)
    amount = f"{100 * item.change.value:+.1f} points {_interval(item.change)}"
    texts = {
        "forgetting": f"forgetting: {item.domain} rose in its own stage and then changed by {amount} after {since}",
        "fell": f"{item.domain} changed by {amount} after {since}, beyond noise; it had not risen in its own stage",
        "gained": f"{item.domain} changed by {amount} after {since}, a gain beyond noise",
    }
    usual = f"{item.domain} changed by {amount} after {since}, {_noise(item.change)}"
    return f"{texts.get(item.verdict, usual)}."


def _rigidity(item: "Rigidity") -> str:
    after = _listed(item.after)
    if item.difference is None or item.level is None:
        return f"Rigidity of {item.domain} {item.verdict}"
    less = f"{100 * item.difference.value:+.1f} points {_interval(item.difference)}"
    reached = f"{100 * item.level.value:+.1f} points {_interval(item.level)}"
    what = f"{item.domain} after {after} gained {less} beside training alone, and reached {reached}"
    return f"rigidity: {what}." if item.verdict == "rigidity" else f"{what}: {item.verdict}."


def _noise(change: Estimate) -> str:
    """Noise after correction; an interval that excludes zero all the same is not passed over in silence."""
    if change.low <= 0 <= change.high:
        return "within noise"
    return "within noise once all comparisons of the run are allowed for"


def _interval(estimate: Estimate) -> str:
    return f"[{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _listed(names: "Sequence[str]") -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _reason(text: str) -> str:
    return text.removeprefix(UNKNOWN).rstrip(".")

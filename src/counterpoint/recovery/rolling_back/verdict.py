"""What a rollback found, in sentences."""

import math
from collections.abc import Mapping

from counterpoint.recovery.rolling_back.results import Chosen, Reported, Rollback
from counterpoint.stats import Estimate


def verdict_of(found: Rollback) -> str:
    """One paragraph: what was lost, what came back, what random weights bring back, and what it cost the others."""
    before, after = (_row(found, name) for name in ("before", "after"))
    own = found.domain
    if found.chosen is None:
        if not found.tried:
            return nothing_to_recover(found)
        return (
            f"{_fell(own, before, after)} None of the {_count(found)} rollbacks that were tried does better than "
            "leaving the weights as they are on the selection split, so nothing was written."
        )
    rollback = _row(found, "rollback")
    return " ".join([_fell(own, before, after), _came_back(found, rollback), _random(found), _others(found, rollback)])


def nothing_to_recover(found: Rollback) -> str:
    """For a domain that did not fall."""
    before, after = (_row(found, name) for name in ("before", "after"))
    return (
        f"nothing to recover: {found.domain} scores {show(before.scores[found.domain])} before and "
        f"{show(after.scores[found.domain])} after the edit, a change of {signed(after_change(found))}, which is "
        f"{'a rise' if after_change(found).low > 0 else 'within noise'}. Use --force to try all the same."
    )


def after_change(found: Rollback) -> Estimate:
    """The domain's change from before to after the edit."""
    assert found.damage is not None, "both ends are measured first"
    return found.damage


def show(value: Estimate) -> str:
    """``0.812 [0.780, 0.843]``."""
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def signed(value: Estimate) -> str:
    """``+0.050 [+0.021, +0.079]``."""
    return f"{value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"


def _row(found: Rollback, name: str) -> Reported:
    return next(row for row in found.reported if row.name == name)


def _count(found: Rollback) -> int:
    return sum(trial.kind == "rollback" for trial in found.tried)


def _fell(own: str, before: Reported, after: Reported) -> str:
    return f"{own} went from {show(before.scores[own])} to {show(after.scores[own])}."


def _came_back(found: Rollback, rollback: Reported) -> str:
    chosen: Chosen | None = found.chosen
    assert chosen is not None, "the caller has seen to it"
    how_far = "all the way" if chosen.scale == 1 else f"{chosen.scale:.0%} of the way"
    change = rollback.changes[found.domain]
    restored = "" if found.restored is None else f", {_share(found.restored)} of the loss"
    noise = "" if change.low > 0 else "; that is within noise" if change.high >= 0 else "; that is a further fall"
    return (
        f"Moving {chosen.num_weights / found.num_weights:.2%} of the weights back {how_far} changes it by "
        f"{signed(change)}{restored}{noise}."
    )


def _share(value: Estimate) -> str:
    if not math.isfinite(value.high):
        return f"about {value.value:.0%}"
    return f"{value.value:.0%} [{value.low:.0%}, {value.high:.0%}]"


def _random(found: Rollback) -> str:
    assert found.beyond_random is not None, "random weights are always beside"
    beyond = found.beyond_random[found.domain]
    said = "more than" if beyond.low > 0 else "less than" if beyond.high < 0 else "not told apart from"
    draws = sum(row.name == "random" for row in found.reported)
    return f"That is {said} what as many random weights do ({draws} draw{'s' * (draws != 1)}): {signed(beyond)}."


def _others(found: Rollback, rollback: Reported) -> str:
    others: Mapping[str, Estimate] = {name: value for name, value in rollback.changes.items() if name != found.domain}
    if not others:
        return ""
    moved = [f"{name} {signed(value)}" for name, value in others.items() if value.low > 0 or value.high < 0]
    if not moved:
        return f"The other domains ({', '.join(others)}) stay within noise."
    rest = [name for name in others if not any(part.startswith(f"{name} ") for part in moved)]
    return f"Other domains: {', '.join(moved)}{'; ' + ', '.join(rest) + ' within noise' if rest else ''}."

"""What came of the attempts, in sentences."""

from collections.abc import Sequence

from counterpoint.recovery.recovering.results import Attempt, Fallen
from counterpoint.recovery.rolling_back.verdict import show, signed


def attempt_sentence(one: Fallen, attempt: Attempt) -> str:
    """One attempt: the domain's score, what others lost, whether that is enough."""
    if attempt.checkpoint is None:
        return f"{attempt.kind.capitalize()} for {one.domain}: {attempt.verdict}"
    score, change = attempt.scores[one.domain], attempt.changes[one.domain]
    back = "back within" if attempt.back else "still below"
    harmed = [f"{name} {signed(attempt.changes[name])}" for name in attempt.harmed]
    others = f"It costs {', '.join(harmed)}." if harmed else "No other domain falls beyond its interval."
    return (
        f"{attempt.kind.capitalize()} for {one.domain}: {show(score)}, a change of {signed(change)}; {back} the "
        f"interval of its former score {show(one.former)}. {others}"
    )


def end_sentence(
    fallen: Sequence[Fallen], attempts: Sequence[Attempt], chosen: Sequence[Attempt], checkpoint: str | None
) -> str:
    """What was left and how sure it is."""
    if not chosen:
        names = ", ".join(one.domain for one in fallen)
        return (
            f"Nothing helped: no attempt brings {names} up without harm to another domain, so the run's last "
            "checkpoint stays the best one."
        )
    said = ", ".join(f"{one.domain} by {one.kind}{'' if one.back else ' in part'}" for one in chosen)
    settled = {one.domain for one in chosen} | {one.domain for one in attempts if one.nothing}
    missed = [one.domain for one in fallen if one.domain not in settled]
    rest = f" Not recovered: {', '.join(missed)}." if missed else ""
    return f"Recovered: {said}.{rest} The checkpoint is {checkpoint}."

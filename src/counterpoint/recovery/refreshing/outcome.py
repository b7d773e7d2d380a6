"""From the lines of a refresh's run to its result: why it stopped, what every look said, what changed."""

from collections.abc import Mapping

from counterpoint.engine.stages import RefreshPlan, outcome
from counterpoint.recovery.refreshing.results import Look
from counterpoint.runs import RunDirectory
from counterpoint.stats import Estimate, Former, Scores, difference_interval, mean_interval

Looks = Mapping[int, Mapping[str, Scores]]


def read_looks(run: RunDirectory) -> dict[int, dict[str, Scores]]:
    """The scores of every prompt at every evaluation of all domains, by step."""
    found: dict[int, dict[str, Scores]] = {}
    for line in run.lines("evals.jsonl"):
        found.setdefault(line["step"], {})[line["domain"]] = tuple(line["scores"])
    domains = set(run.state["domains"])
    return {step: found[step] for step in sorted(found) if found[step].keys() >= domains}


def estimates(scores: Mapping[str, Scores]) -> dict[str, Estimate]:
    """Mean score of every domain with its interval."""
    return {name: mean_interval(values) for name, values in scores.items()}


def evaluations_of(looks: Looks) -> tuple[Look, ...]:
    """Every look as estimates."""
    return tuple(Look(step, estimates(scores)) for step, scores in looks.items())


def changes_of(looks: Looks) -> dict[str, Estimate]:
    """Last look minus first, paired by prompt."""
    first, last = looks[min(looks)], looks[max(looks)]
    return {name: difference_interval(first[name], last[name]) for name in first}


def stop_of(plan: RefreshPlan, looks: Looks, status: str, steps: int) -> tuple[str, str | None]:
    """Why the run of at most ``steps`` steps stopped, and the domain that was harmed."""
    if status != "done":
        return "interrupted", None
    return outcome(plan, looks, 0, max(looks), steps)


def verdict_sentence(domain: str, former: Former, looks: Looks, stopped: str, harmed: str | None) -> str:
    """The outcome in one or two sentences."""
    last = max(looks)
    now, start = estimates(looks[last])[domain], estimates(looks[0])[domain]
    was = f"{former.mean:.3f}" + (f" [{former.low:.3f}, {former.high:.3f}]" if former.scores else "")
    if stopped == "nothing":
        return f"Nothing to recover: {domain} scores {start.value:.3f}, about its former score {was}."
    way = f"{domain} went from {start.value:.3f} to {now.value:.3f} in {last} steps; its former score is {was}."
    if stopped == "recovered":
        return f"Recovered: {way}"
    if stopped == "limit":
        return f"Not recovered at the step limit: {way}"
    if stopped == "interrupted":
        return f"Interrupted: {way}"
    assert harmed is not None
    fell = estimates(looks[last])[harmed].value - estimates(looks[0])[harmed].value
    return f"Stopped because {harmed} fell by {-fell:.3f}. {way}"


def notes_of(run: RunDirectory, domain: str, looks: Looks, stopped: str) -> tuple[str, ...]:
    """What a reader must know beside the numbers."""
    notes = []
    if len(looks) > 1 and changes_of(looks)[domain].high < 0:
        notes.append(
            f"{domain} fell further. The optimizer begins anew, and its first steps move every weight by about the "
            "learning rate, whatever the gradient: try a lower --learning-rate."
        )
    if stopped == "recovered":
        notes.append(
            "The refresh stopped at the first look that met the rule, so the last score is on the lucky side: judge "
            "the checkpoint on other prompts or samples."
        )
    steps = [step for step in looks if 0 < step < max(looks)]
    if stopped == "harmed" and steps and (folder := run.checkpoint_path(steps[-1])).is_dir():
        notes.append(f"The checkpoint before the harm is {folder}.")
    return tuple(notes)


def last_checkpoint(run: RunDirectory) -> tuple[int, str | None]:
    """Step and folder of the newest checkpoint; 0 and None before the first."""
    found = run.checkpoints()
    return (found[-1][0], str(found[-1][1])) if found else (0, None)

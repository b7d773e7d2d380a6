"""Which domains a run lost by its end, read from its evaluations."""

from counterpoint.errors import RunError
from counterpoint.recovery.recovering.results import Fallen
from counterpoint.runs import RunDirectory
from counterpoint.runs.run import Run, Since
from counterpoint.stats import mean_interval


def fallen_domains(directory: RunDirectory) -> tuple[list[Fallen], list[Since]]:
    """Those that fell beyond noise, corrected for all comparisons, the worst first; and those that did not.

    Raises:
        RunError: the run is not finished, or has no evaluations that can be compared.
    """
    run = Run.open(directory.path)
    if run.status != "done":
        raise RunError(
            f"{run.path}: the run is {run.status}, and only a finished one can be recovered. Finish it with "
            f"`counterpoint train --resume {run.path}`."
        )
    assert run.steps, "raises where nothing was evaluated"
    fell = sorted((one for one in run.at_the_end if one.fell), key=lambda one: one.change.value)
    return [_fallen(run, one) for one in fell], [one for one in run.at_the_end if not one.fell]


def _fallen(run: Run, one: Since) -> Fallen:
    own = run.checkpoint(one.first_step)
    return Fallen(
        domain=one.domain,
        from_step=one.first_step,
        to_step=one.last_step,
        since=one.since,
        former=mean_interval(run.known_scores(one.domain, one.first_step)),
        now=mean_interval(run.known_scores(one.domain, one.last_step)),
        change=one.corrected,
        comparisons=len(run.since_own_stage),
        checkpoint=None if own is None else str(own),
    )

"""Which domains a run lost, read from its evaluations: the table of forgetting that a diagnosis makes."""

from counterpoint.diagnosis.behaviour_analysis.history import History, read_history
from counterpoint.diagnosis.behaviour_analysis.scores import Forgetting, forgetting, stage_changes
from counterpoint.diagnosis.statistics import Estimate
from counterpoint.errors import RunError
from counterpoint.recovery.recovering.results import Fallen
from counterpoint.runs import RunDirectory
from counterpoint.stats import mean_interval


def final_changes(run: RunDirectory) -> tuple[list[Forgetting], History, int]:
    """What became of every earlier domain by the end of the run, the run's history, and the number of comparisons.

    The comparisons are those of ``counterpoint diagnose behaviour``: every earlier domain after every later stage.

    Raises:
        RunError: the run is not finished, or has no evaluations that can be compared.
    """
    status = run.state["status"]
    if status != "done":
        raise RunError(
            f"{run.path}: the run is {status}, and only a finished one can be recovered. Finish it with "
            f"`counterpoint train --resume {run.path}`."
        )
    history = read_history(run)
    found = forgetting(history, stage_changes(history))
    end = max((stage.last_step for stage in history.stages), default=0)
    return [one for one in found if one.last_step == end], history, len(found)


def fallen_domains(run: RunDirectory) -> tuple[list[Fallen], list[Forgetting]]:
    """Those that fell beyond noise, corrected for all comparisons, the worst first; and those that did not."""
    changes, history, comparisons = final_changes(run)
    fell = sorted((one for one in changes if one.corrected.high < 0), key=lambda one: one.change.value)
    rest = [one for one in changes if one.corrected.high >= 0]
    return [_fallen(run, history, one, comparisons) for one in fell], rest


def _fallen(run: RunDirectory, history: History, one: Forgetting, comparisons: int) -> Fallen:
    own = run.checkpoint_path(one.first_step)
    return Fallen(
        domain=one.domain,
        from_step=one.first_step,
        to_step=one.last_step,
        since=one.since,
        former=_estimate(history, one.domain, one.first_step),
        now=_estimate(history, one.domain, one.last_step),
        change=one.corrected,
        comparisons=comparisons,
        checkpoint=str(own) if own.is_dir() else None,
    )


def _estimate(history: History, domain: str, step: int) -> Estimate:
    found = mean_interval(history.known_scores(domain, step))
    return Estimate(found.mean, found.low, found.high)

"""Rollback: undoes the part of a later edit that costs an earlier domain most, without training.

    theta_new = theta_after - a * mask * (theta_after - theta_before)

Which weights, and how far (a), is chosen on training rows and reported once on held-out rows. Which choices are ours:
``docs/recovery.md``. Named after LPT (arXiv 2606.02398), whose rule is not public.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from counterpoint.checkpoints import check_output
from counterpoint.config import Config
from counterpoint.diagnosis.subject import config_of, wanted_domains
from counterpoint.errors import CounterpointError
from counterpoint.progress import Progress, silent
from counterpoint.recovery.results import write_result
from counterpoint.recovery.rolling_back.edit import Edit, changed_weights, open_edit
from counterpoint.recovery.rolling_back.options import RollbackOptions, check_options
from counterpoint.recovery.rolling_back.results import Rollback
from counterpoint.recovery.rolling_back.selection import check_budgets
from counterpoint.recovery.rolling_back.verdict import verdict_of
from counterpoint.recovery.rolling_back.work import Work


def rollback(
    before: str | Path,
    after: str | Path,
    domain: str,
    config: str | Path | Config,
    *,
    out: Path | None = None,
    other: str | None = None,
    options: RollbackOptions | None = None,
    completions: Path | None = None,
    save: Path | None = None,
    on_progress: Progress = silent,
) -> Rollback:
    """Looks for the weights whose restoring brings ``domain`` back, and writes the best checkpoint found.

    Args:
        before: the checkpoint right after the domain's own stage.
        after: a later checkpoint of the same model.
        domain: the domain that may have suffered.
        config: configuration or run directory that defines the domains.
        out: the folder to write; None writes none. It is not written where nothing was damaged or nothing helped.
        other: the later domain, for ``where="route"``.
        options: which weights, how many, how far, and what it is measured on.
        completions: a file of completions of ``before`` that an analysis saved, instead of sampling.
        save: where the result is written as JSON; an unfinished one goes to ``NAME.stopped.json`` beside it.
        on_progress: called with what is being done, steps done and in total.

    Raises:
        ConfigError: a bad configuration or an unknown domain.
        ModelError: checkpoints that cannot be compared, are equal or not finite, or a folder that is taken.
        CounterpointError: impossible options, an empty mask, or a budget that is larger than the edit.
    """
    start = time.monotonic()
    options = options or RollbackOptions()
    check_options(options, domain, other)
    config = config if isinstance(config, Config) else config_of(config)
    wanted_domains(config, [domain, *([other] if other else [])])
    edit = open_edit(before, after)
    if out is not None:
        check_output(out, edit.pair.after)
    changed = changed_weights(edit, lambda done, total: on_progress("read the edit", done, total))
    check_budgets(options, edit, sum(changed.values()))
    asked = Rollback(str(before), str(after), domain, other, options)
    work = Work(config, edit, changed, options, completions, out, on_progress, _begin(asked, edit, changed))
    try:
        work.run()
    except (KeyboardInterrupt, CounterpointError) as error:
        _keep_part(save, work.result, error, time.monotonic() - start)
        raise
    found = replace(work.result, verdict=verdict_of(work.result), seconds=time.monotonic() - start)
    if save is not None:
        write_result(save, "rollback", found)
        stopped_file(save).unlink(missing_ok=True)
    return found


def _begin(asked: Rollback, edit: Edit, changed: Mapping[str, int]) -> Rollback:
    """The result with what is known before anything is measured."""
    options = asked.options
    return replace(
        asked,
        score=options.score,
        unit=options.unit,
        where=options.where,
        num_weights=edit.num_weights,
        num_changed=sum(changed.values()),
    )


def stopped_file(save: Path) -> Path:
    """Where the part of a result goes that was not finished: ``rollback.stopped.json``."""
    return save.with_name(f"{save.stem}.stopped.json")


def _keep_part(save: Path | None, found: Rollback, error: BaseException, seconds: float) -> None:
    """Writes what was measured before the end, where anything was; never in the place of a whole result."""
    if save is None or not found.reported:
        return
    reason = f"Stopped: {str(error) or 'by hand'}"
    write_result(stopped_file(save), "rollback", replace(found, stopped=reason, verdict=reason, seconds=seconds))

"""A refresh from beginning to end: former score, training with looks, and its result on disk.

Source: "A Local Perturbation Theory ..." (arXiv 2606.02398): a short refresh brings back an earlier domain, because the
damage lies in a small shared subspace where its loss is curved. The stopping rules are ours.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from counterpoint.config import Config, load_config
from counterpoint.diagnosis.subject import config_of
from counterpoint.engine import Interrupted, Reporter, resume, train
from counterpoint.engine.stages import RefreshPlan
from counterpoint.errors import RunError
from counterpoint.launch import Launch, rank_of_environment
from counterpoint.recovery.refreshing import outcome as reading
from counterpoint.recovery.refreshing.configure import refresh_config
from counterpoint.recovery.refreshing.former import former_score
from counterpoint.recovery.refreshing.results import Refresh, RefreshOptions
from counterpoint.recovery.results import write_result
from counterpoint.runs import RunDirectory
from counterpoint.stats import Estimate


def refresh(
    model: str | Path,
    domain: str,
    config: str | Path | Config,
    *,
    reference: str | Path | None = None,
    out: str | Path,
    options: RefreshOptions | None = None,
    reporter: Reporter | None = None,
) -> Refresh:
    """Trains ``domain`` for a few steps from ``model`` until it is back, looking at all domains.

    ``out`` becomes a run directory with ``recovery/refresh.json``. The same call goes on with a refresh that was
    stopped or killed, and returns the result of one that is done.

    Args:
        model: the checkpoint whose domain is damaged.
        domain: the damaged domain.
        config: configuration or run directory that defines the domains and the training settings.
        reference: the checkpoint after the domain's own stage: its score is the former one. Where ``config`` is a run,
            its own evaluation is taken.
        out: the run directory to write.
        options: steps, looks, protection, replay.
        reporter: hears of training and evaluations.

    Raises:
        CounterpointError: whatever makes it impossible, before training.
        Interrupted: the user stopped it; the result so far is written, and the same call goes on.
    """
    out, options = Path(out), options or RefreshOptions()
    source = _run_of(config)
    config = config if isinstance(config, Config) else config_of(config)
    asked = _asked(model, domain, reference, options)
    trained = refresh_config(config, str(model), domain, out, options)
    if (out / "run.json").is_file():
        _check_same(out, trained, asked)
        return continue_refresh(out, reporter)
    _check_free(out)
    former = former_score(
        config,
        None if source is None else source.path,
        domain,
        None if reference is None else str(reference),
        options.former,
        reporter,
    )
    return _work(out, trained, RefreshPlan(domain, former, options.every, asked), reporter, start=True)


def continue_refresh(out: Path, reporter: Reporter | None = None) -> Refresh:
    """Goes on with the refresh in ``out``, or returns the result of one that is done.

    Raises:
        RunError: there is no refresh in ``out``.
    """
    config = load_config(RunDirectory.open(out, write=False).config_path)
    return _work(out, config, _stored_plan(out), reporter, start=False)


def _work(out: Path, config: Config, plan: RefreshPlan, reporter: Reporter | None, *, start: bool) -> Refresh:
    """Trains, or goes on, and writes the result."""
    began = time.perf_counter()
    try:
        if start:
            train(config, out.name, reporter, refresh=plan)
        else:
            resume(out, reporter)
    except Interrupted:
        if not rank_of_environment() and 0 in reading.read_looks(RunDirectory(out)):
            write_result(out / "recovery" / "refresh.json", "refresh", _result(out, plan, began))
        raise
    Launch.join().wait()
    found = _result(out, plan, began)
    if not rank_of_environment():
        write_result(out / "recovery" / "refresh.json", "refresh", found)
    return found


def _result(out: Path, plan: RefreshPlan, began: float) -> Refresh:
    """What the run in ``out`` came to so far."""
    run = RunDirectory(out)
    looks = reading.read_looks(run)
    asked, domain, former = plan.options, plan.domain, plan.former
    steps = load_config(run.config_path).training["max_steps"]
    stopped, harmed = reading.stop_of(plan, looks, run.state["status"], steps)
    step, checkpoint = reading.last_checkpoint(run)
    options = {field.name: asked[field.name] for field in fields(RefreshOptions)}
    return Refresh(
        model=asked["model"],
        reference=asked["reference"],
        domain=domain,
        run=str(out),
        checkpoint=checkpoint,
        options=RefreshOptions(**options | {"protect": tuple(options["protect"])}),
        stopped=stopped,
        harmed=harmed,
        steps=step,
        former=Estimate(former.mean, former.low, former.high),
        start=reading.estimates(looks[0]),
        evaluations=reading.evaluations_of(looks),
        changes=reading.changes_of(looks),
        verdict=reading.verdict_sentence(domain, former, looks, stopped, harmed),
        seconds=time.perf_counter() - began,
        notes=reading.notes_of(run, domain, looks, stopped),
    )


def _stored_plan(out: Path) -> RefreshPlan:
    stored = RunDirectory.open(out, write=False).state.get("refresh")
    if stored is None:
        raise RunError(f"{out}: holds a run that is no refresh, and nothing is overwritten. Give another folder.")
    return RefreshPlan.from_json(stored)


def _check_same(out: Path, config: Config, asked: Mapping[str, Any]) -> None:
    """Refuses to go on with a refresh that was started with other settings."""
    plan = _stored_plan(out)
    for key, value in asked.items():
        if plan.options[key] != value:
            raise RunError(
                f"{out}: holds a refresh that was started with {key}={plan.options[key]}, and {value} is asked for. "
                "Repeat the first command to go on with it, or give another folder."
            )
    kept = load_config(RunDirectory.open(out, write=False).config_path)
    ours, theirs = (one.model_dump(exclude={"run": {"dir"}}) for one in (config, kept))
    changed = [key for key in ours if ours[key] != theirs[key]]
    if changed:
        raise RunError(
            f"{out}: holds a refresh that was started with another configuration ({', '.join(changed)} differ). Give "
            "the same one to go on with it, or another folder."
        )


def _run_of(config: str | Path | Config) -> RunDirectory | None:
    if isinstance(config, Config) or not (Path(config) / "run.json").is_file():
        return None
    return RunDirectory.open(config, write=False)


def _asked(model: str | Path, domain: str, reference: str | Path | None, options: RefreshOptions) -> dict[str, Any]:
    """The settings as plain values, to be kept and compared."""
    named = {
        "model": _absolute(model),
        "domain": domain,
        "reference": None if reference is None else _absolute(reference),
    }
    return {**named, **asdict(options), "protect": list(options.protect)}


def _absolute(path: str | Path) -> str:
    return str(Path(path).resolve()) if Path(path).exists() else str(path)


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(item.name != ".lock" for item in out.iterdir())):
        raise RunError(f"{out}: is there already and holds no refresh; nothing is overwritten. Give another folder.")

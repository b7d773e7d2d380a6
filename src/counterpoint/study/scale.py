"""Chooses among merged models on training prompts, so that the held-out ones stay untouched."""

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from counterpoint.checkpoints import check_output, open_checkpoint
from counterpoint.config import Config
from counterpoint.engine.evaluate import evaluation_of, model_of
from counterpoint.errors import CounterpointError
from counterpoint.runs import Reporter


def choose_scale(
    merged: Callable[[float, Path], Path],
    scales: Sequence[float],
    config: Config,
    prompts: int,
    out: Path,
    reporter: Reporter,
) -> list[tuple[float, float]]:
    """Merges with every scale and leaves the best model in ``out``: the one with the highest mean over domains.

    Args:
        merged: makes the model of a scale in a folder.
        scales: to choose among; of equally good ones the first.
        config: its domains, the last ``prompts`` training rows of each, sampled as its evaluation says. Its batch plays
            no part.
        prompts: rows of each domain.
        out: a new folder.
        reporter: hears of progress.

    Returns:
        Every scale with its score.

    Raises:
        CounterpointError: what ``merged`` or the configuration is refused for.
    """
    check_output(out, open_checkpoint(config.model.path))
    held_out = evaluation_of(config, config.model)
    domains = tuple(replace(domain, evaluation=domain.train[-prompts:]) for domain in held_out.domains)
    evaluation = replace(held_out, domains=domains, plan=replace(held_out.plan, greedy=False))
    trial = out.with_name(f".{out.name}.trial")
    scored: list[tuple[float, float]] = []
    try:
        for scale in scales:
            shutil.rmtree(trial, ignore_errors=True)
            found = evaluation.make(f"scale {scale:g}", model_of(config, merged(scale, trial)), reporter)
            score = statistics.fmean(one.mean for one in found)
            if not scored or score > max(value for _, value in scored):
                shutil.rmtree(out, ignore_errors=True)
                trial.rename(out)
            scored.append((scale, score))
    except CounterpointError:
        shutil.rmtree(out, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    return scored

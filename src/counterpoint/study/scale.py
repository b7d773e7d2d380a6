"""Chooses among merged models on training prompts, so that the held-out ones stay untouched."""

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from counterpoint.checkpoints import check_output, open_checkpoint
from counterpoint.config import Config
from counterpoint.engine.prepare import Plan, grpo_config, plan_run
from counterpoint.errors import CounterpointError
from counterpoint.evaluation import EvaluationPlan, evaluate
from counterpoint.models import load_model

Progress = Callable[[str, int, int], None]
Merger = Callable[[float | None, Path], Path]


def choose_scale(
    merged: Merger, scales: Sequence[float | None], config: Config, prompts: int, out: Path, on_progress: Progress
) -> list[tuple[float, float]]:
    """Merges with every scale and leaves the best model in ``out``: the one with the highest mean over domains.

    Args:
        merged: makes the model of a scale in a folder.
        scales: to choose among; of equally good ones the first.
        config: its domains, the last ``prompts`` training rows of each, sampled as its evaluation says.
        prompts: rows of each domain.
        out: a new folder.
        on_progress: called with a word for the work, completions done and in total.

    Returns:
        Every scale with its score.

    Raises:
        CounterpointError: what ``merged`` or the configuration is refused for.
    """
    check_output(out, open_checkpoint(config.model.path))
    plan = plan_run(config)
    trial = out.with_name(f".{out.name}.trial")
    scored: list[tuple[float, float]] = []
    try:
        for scale in scales:
            assert scale is not None
            shutil.rmtree(trial, ignore_errors=True)
            score = _score(plan, merged(scale, trial), prompts, _named(f"scale {scale:g}", on_progress))
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


def _score(plan: Plan, checkpoint: Path, prompts: int, on_progress: Progress) -> float:
    config = plan.config
    args = grpo_config(config, "unused")
    settings = replace(EvaluationPlan.of_config(config, args.max_completion_length), greedy=False)
    domains = [replace(domain, evaluation=domain.train[-prompts:]) for domain in plan.domains]
    model = load_model(config.model.model_copy(update={"path": str(checkpoint), "lora": None})).to(args.device)
    scores = evaluate(model, plan.tokenizer, domains, settings, on_progress)
    return statistics.fmean(score.mean for score in scores)


def _named(what: str, on_progress: Progress) -> Progress:
    return lambda domain, done, total: on_progress(f"{what}: {domain}", done, total)

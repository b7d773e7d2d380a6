"""Keys of ``training:`` that counterpoint sets itself, with the reason and the key to use instead."""

import difflib
from collections.abc import Collection

REFUSED_KEYS: dict[str, str] = {
    "output_dir": "the run directory is run.dir/run.name",
    "run_name": "the run is named by run.name",
    "seed": "the seed is run.seed",
    "data_seed": "the order of prompts follows run.seed",
    "use_cpu": "the device is run.device",
    "load_best_model_at_end": "checkpoints are kept by run.keep",
    "resume_from_checkpoint": "use `counterpoint train --resume RUN`",
    "ignore_data_skip": "a resumed run would draw other prompts than one that was never stopped",
    "overwrite_output_dir": "a run directory is never overwritten; give a new run.name",
    "logging_dir": "metrics go to the run directory",
    "logging_steps": "every step writes one line of metrics.jsonl",
    "logging_strategy": "every step writes one line of metrics.jsonl",
    "logging_first_step": "every step writes one line of metrics.jsonl",
    "do_eval": "evaluation is set by evaluation.before and evaluation.every",
    "per_device_eval_batch_size": "evaluation generates evaluation.batch_size completions at once",
    "remove_unused_columns": "rewards need the columns, so they are always kept",
    "reward_weights": "weights stand beside their rewards, at domains.*.reward.weight",
    "shuffle_dataset": "each domain is reshuffled every pass, by run.seed",
    "max_prompt_length": "the longest prompt is max_prompt_tokens, or domains.*.max_prompt_tokens",
    "model_init_kwargs": "the model is loaded by the keys of model",
}
REFUSED_PREFIXES: dict[str, str] = {
    "save_": "checkpoints are set by run.save_every and run.keep",
    "eval_": "evaluation is set by the keys of evaluation",
}


def refused_reason(key: str) -> str | None:
    """Why ``training.key`` may not be written, naming the key to use instead; None where it may."""
    if key in REFUSED_KEYS:
        return REFUSED_KEYS[key]
    return next((reason for prefix, reason in REFUSED_PREFIXES.items() if key.startswith(prefix)), None)


def unknown_setting(key: str, known: Collection[str]) -> str:
    """What to say of a key that ``trl.GRPOConfig`` does not have; with the nearest name, for there are too many."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"not a setting of trl.GRPOConfig; {f'did you mean {close[0]!r}?' if close else 'see its documentation.'}"

"""The trainer of one stage, and the checkpoint from which it starts or goes on."""

import gc
import shutil
from pathlib import Path

import torch
from transformers.trainer_callback import PrinterCallback

from counterpoint.errors import ConfigError, CounterpointError
from counterpoint.launch import Launch
from counterpoint.models import load_model, lora_config
from counterpoint.runs import RunDirectory
from counterpoint.training.backends import check_checkpoints
from counterpoint.training.preflight import Plan, strategy_spec
from counterpoint.training.settings import CONTINUED, grpo_config, output_dir
from counterpoint.training.stages import Stage
from counterpoint.training.trainer import DomainGRPOTrainer

_STATE = ("optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "training_args", "counterpoint_")
"""Parts of the names of those files of a checkpoint that are not the model's."""


def build_trainer(plan: Plan, run: RunDirectory, stage: Stage, start: Path | None) -> DomainGRPOTrainer:
    """The trainer of ``stage`` with the model in ``start``, or the configuration's where it is None.

    A refresh that is put between stages has its own seed, so that it does not repeat the prompts of the domain's stage.
    """
    config = plan.config
    domains = [domain for domain in plan.domains if domain.name in stage.domains]
    args = grpo_config(config, output_dir(run, stage), stage.num_steps)
    args.run_name = run.path.name
    args.strategy, args.share_rule = strategy_spec(config), config.share_rule
    args.shares = {domain.name: domain.share for domain in domains}
    args.buffers, args.grams_every = config.surgery.buffers, config.run.grams_every
    args.reward_weights = [reward.weight for domain in domains for reward in domain.rewards]
    if stage.kind == "refresh":
        args.seed += stage.index
        args.learning_rate = config.recovery.learning_rate or args.learning_rate
    model, peft = load_model(config.model, start), lora_config(config.model) if start is None else None
    try:
        trainer = DomainGRPOTrainer(
            model,
            {domain.name: {reward.name: reward.function for reward in domain.rewards} for domain in domains},
            args,
            {domain.name: domain.train for domain in domains},
            processing_class=plan.tokenizer,
            peft_config=peft,
        )
    except CounterpointError:
        raise
    except (ValueError, ImportError, NotImplementedError, OSError) as error:  # how TRL refuses settings for a model
        raise ConfigError(f"training: TRL cannot use these settings with this model: {error}") from error
    check_checkpoints(trainer.accelerator)
    trainer.remove_callback(PrinterCallback)
    return trainer


def free_memory() -> None:
    """Gives back the memory of a trainer that nobody uses any more, before the next model is loaded."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def continued_checkpoint(run: RunDirectory, stage: Stage, stopped: int, launch: Launch) -> Path:
    """A checkpoint with the model before ``stage`` and everything else from step ``stopped``.

    From it ``stage``, which was interrupted, goes on after a refresh: with its own optimizer state, schedule, random
    numbers and order of prompts. It is made of links and costs no space.
    """
    folder = Path(output_dir(run, stage)) / CONTINUED

    def link() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for step, wants_state in ((stopped, True), (stage.first_step, False)):
            for file in run.checkpoint_path(step).resolve().iterdir():
                if any(part in file.name for part in _STATE) == wants_state:
                    (folder / file.name).symlink_to(file)

    launch.share(link)
    return folder

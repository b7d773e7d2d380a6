"""Small data, rewards and settings for trainer tests."""

import warnings

import torch
from transformers import TrainerCallback

from counterpoint.training import DomainGRPOConfig

DATA = {
    "math": [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(7)],
    "code": [{"prompt": f'up("{c}")=', "answer": c.upper()} for c in "abcde"],
}


def letters(completions, **_):
    """Share of lower-case letters: varies from completion to completion of an untrained model."""
    return [sum(ch.islower() for ch in c) / max(1, len(c)) for c in completions]


def digits(completions, **_):
    return [sum(ch.isdigit() for ch in c) / max(1, len(c)) for c in completions]


def shortness(completions, **_):
    return [1 / (1 + len(c)) for c in completions]


REWARDS = {"math": digits, "code": letters}


def grpo_args(folder, **overrides):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    } | overrides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return DomainGRPOConfig(**settings)


class GradientTape(TrainerCallback):
    """Keeps a copy of every gradient that reaches the optimizer."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def taped(cls, *args, tokenizer, **kwargs):
    """A trainer of class ``cls`` that has trained, and the gradients of its steps."""
    tape = GradientTape()
    trainer = cls(*args, processing_class=tokenizer, callbacks=[tape], **kwargs)
    trainer.train()
    return trainer, tape.steps


def relative_error(ours, reference):
    """Norm of the difference over the norm of the reference, over all parameters at once."""
    difference = sum(((ours[n] - reference[n]).double() ** 2).sum() for n in reference)
    scale = sum((g.double() ** 2).sum() for g in reference.values())
    return (difference / scale).sqrt().item() if scale > 0 else difference.sqrt().item()


def total_norm(gradients):
    return torch.stack([g.double().norm() for g in gradients.values()]).norm().item()

"""Trainings on several ranks whose results can be compared, and the script that ``accelerate launch`` starts."""

import os
import random
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from trainer_helpers import DATA, REWARDS, digits, grpo_args, letters

MORE_DATA = DATA | {
    "qa": [{"prompt": f"is {i} odd?"} for i in range(6)],
    "writing": [{"prompt": f"{word}..."} for word in ("one", "two", "three", "four", "five")],
}
MORE_REWARDS = REWARDS | {"qa": letters, "writing": digits}

OWN = {"math": {"temperature": 0.6, "beta": 0.0, "epsilon": 0.1}, "code": {"num_generations": 2}}

WORST = {"name": "worst", "options": {"learning_rate": 0.3}}


def follow(history, mix):
    """A curriculum that would tell other ranks other things."""
    last = history[-1]["reward"]
    more, fewer = ("math", "code") if last["math"] > last["code"] else ("code", "math")
    return {"shares": {more: 3, fewer: 1}, "weights": {more: 2.0 + int(os.environ.get("RANK", "0"))}}


@dataclass(frozen=True)
class Case:
    """One training; ``accumulation`` counts micro-batches of all ranks, ``steps_per_generation`` optimizer steps."""

    strategy: Any = "mgs"
    num_domains: int = 2
    accumulation: int = 8
    lora: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {
    "mixed": Case("mixed", settings={"grams_every": 2}),
    "mgs": Case("mgs"),
    "mgs-tensor, 3 domains": Case("mgs-tensor", num_domains=3, accumulation=12),
    "mgs, 4 domains, clipped": Case("mgs", num_domains=4, settings={"max_grad_norm": 0.1}),
    "pcgrad, 2 uses of a generation": Case("pcgrad", settings={"num_iterations": 2}),
    "mgs, 2 generations in a step": Case("mgs", settings={"steps_per_generation": 0.5}),
    "mgs, lora": Case("mgs", lora=True),
    "mgs-significant": Case("mgs-significant"),
    "mgs, balanced by prompts": Case("mgs", num_domains=3, accumulation=12, settings={"balance": "prompts"}),
    "mixed, equal norms": Case("mixed", settings={"balance": "norm", "grams_every": 3}),
    "mgs, worst domain first": Case("mgs", settings={"balance": WORST}),
    "mgs, own settings": Case("mgs", settings={"per_domain": OWN, "beta": 0.1, "num_iterations": 2}),
    "mgs, a curriculum": Case("mgs", settings={"curriculum": follow}),
    "mgs, recomputed activations": Case("mgs", settings={"gradient_checkpointing": True}),
    "mgs, compiled": Case("mgs", settings={"torch_compile": True, "torch_compile_backend": "aot_eager"}),
    "mgs, synced each": Case(
        "mgs", settings={"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}
    ),
}


def stub_generation(cls: type) -> type:
    """``cls`` with completions that depend on prompt, place in the group and step alone: equal for any ranks."""

    class Stubbed(cls):
        def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **_):
            completions = []
            for i, ids in enumerate(prompt_ids):
                draw = random.Random(f"{self.state.global_step} {list(ids)} {i % num_generations}")
                length = draw.randint(2, 6)
                completions.append([draw.randint(5, self.model.config.vocab_size - 1) for _ in range(length)])
            return completions, None

    return Stubbed


def train_case(model: str, folder: Path, case: Case, world: int, cls: type | None = None) -> dict[str, Any]:
    """Trains ``case`` on this rank of ``world`` and gives weights and Grams as plain arrays."""
    from transformers import AutoTokenizer

    from counterpoint.anatomy import parameters_of
    from counterpoint.training import DomainGRPOTrainer
    from counterpoint.training.backends import Reduction

    names = list(MORE_DATA)[: case.num_domains]
    settings = {"max_steps": 4, "learning_rate": 1e-3, "gradient_checkpointing": False} | case.settings
    settings["gradient_accumulation_steps"] = case.accumulation // world
    if "steps_per_generation" in settings:
        settings["steps_per_generation"] = int(settings["steps_per_generation"] * case.accumulation // world)
    records, reductions = [], []

    class Recording(stub_generation(cls or DomainGRPOTrainer)):
        def _begin_micro_batch(self):
            super()._begin_micro_batch()
            reductions.append(self._separates_domains and self._collects)

        def _end_window(self):
            super()._end_window()
            if self._separates_domains:
                records.append(self.last_record.gram_GDD.numpy())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Recording(
            model,
            {name: MORE_REWARDS[name] for name in names},
            grpo_args(folder, strategy=case.strategy, **settings),
            {name: MORE_DATA[name] for name in names},
            processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
            peft_config=_lora() if case.lora else None,
        )
        trainer.train()
    unwrapped = trainer.accelerator.unwrap_model(trainer.model)
    weights = {name: _whole(p).numpy() for name, p in parameters_of(unwrapped).items() if p.requires_grad}
    return {
        "weights": weights,
        "grams": records,
        "ranks": trainer.accelerator.num_processes,
        "sharded": Reduction.of(trainer.model_wrapped).sharded,
        "mesh": [tuple(p.device_mesh.shape) for p in unwrapped.parameters() if hasattr(p, "device_mesh")][:1],
        "collected": sum(reductions),
        "log": _log(trainer),
    }


def _whole(param):
    value = param.detach()
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()


def _log(trainer):
    keys = ("loss", "grad_norm", "reward/math", "entropy/math", "conflict_rate", "share_tokens/math")
    keys += ("share_prompts/math", "share_signal/math", "effective_weight/math", "share_update/math")
    return [{k: v for k, v in line.items() if k in keys} for line in trainer.state.log_history]


def _lora():
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")


def train_cases(model: str, folder: Path, names: list[str]) -> dict[str, Any]:
    """The results of several cases on this rank."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")  # accelerate asks for it
    return {name: train_case(model, folder / f"{world}", CASES[name], world) for name in names}


SHARDED_CASES = [
    "mixed",
    "mgs",
    "mgs, lora",
    "mgs, 4 domains, clipped",
    "mgs-significant",
    "mixed, equal norms",
    "mgs, own settings",
    "mgs, recomputed activations",
    "mgs, compiled",
    "mgs, synced each",
]


LAUNCHED_CASES = [
    "mgs",
    "mgs-tensor, 3 domains",
    "pcgrad, 2 uses of a generation",
    "mgs, 2 generations in a step",
    "mgs-significant",
    "mgs, balanced by prompts",
    "mixed, equal norms",
    "mgs, own settings",
    "mgs, worst domain first",
    "mgs, a curriculum",
]
"""What DDP does differently, and what FSDP2 is not asked."""


def train_sharded(model: str, folder: Path, names: list[str]) -> dict[str, Any]:
    """The same cases on FSDP2 as ``accelerator.prepare`` makes it."""
    fsdp = {"fsdp": True, "fsdp_config": shard_on_cpu()}
    world = int(os.environ["WORLD_SIZE"])
    return {
        name: train_case(model, folder, replace(CASES[name], settings=CASES[name].settings | fsdp), world)
        for name in names
    }


HYBRID_CASES = ["mgs"]
"""What differs is the mesh; adapters and compiled models are shown on FSDP2."""


def train_hybrid(model: str, folder: Path, names: list[str]) -> dict[str, Any]:
    """The same cases on HSDP: two replicas of the model, each of them sharded over half of the ranks."""
    from accelerate.parallelism_config import ParallelismConfig

    world = int(os.environ["WORLD_SIZE"])
    hybrid = {
        "fsdp": True,
        "fsdp_config": shard_on_cpu(),
        "parallelism_config": ParallelismConfig(dp_replicate_size=2, dp_shard_size=world // 2),
    }
    return {
        name: train_case(model, folder, replace(CASES[name], settings=CASES[name].settings | hybrid), world)
        for name in names
    }


def run_sharded(settings: dict[str, Any]) -> None:
    """A whole run on FSDP2."""
    from counterpoint.config import parse_config
    from counterpoint.engine import resume, train

    training = settings["training"] | {"fsdp": True, "fsdp_config": shard_on_cpu()}
    config = parse_config(settings | {"training": training})
    path = Path(config.run.dir) / str(config.run.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resume(path) if path.exists() else train(config, "sharded")


def shard_on_cpu() -> dict[str, Any]:
    """An ``fsdp_config``, once accelerate is ready to use it on ranks without GPUs."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from transformers import Trainer

    create = Trainer.create_accelerator_and_postprocess

    def create_as_on_gpus(trainer):
        # accelerate has no FSDP for kinds of devices named CPU, though everything below it works on gloo ranks
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        create(trainer)

    Trainer.create_accelerator_and_postprocess = create_as_on_gpus
    return {
        "version": 2,
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        "state_dict_type": "FULL_STATE_DICT",
    }


def train_unaveraged(model: str, folder: Path, names: list[str]) -> dict[str, Any]:
    """The same where nobody averages gradients over ranks: what goes wrong if ``average_over`` is forgotten."""
    from counterpoint.training.backends import Reduction

    Reduction.group = property(lambda self: None)
    return train_cases(model, folder, names)


def diverge_on_one(model: str, folder: Path) -> str:
    """What each rank says when the loss is no number on the second one alone."""
    from counterpoint.errors import DivergedError
    from counterpoint.training import DomainGRPOTrainer

    class Broken(DomainGRPOTrainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            broken = self.state.global_step == 1 and self.accelerator.process_index == 1
            return loss * torch.nan if broken else loss

    try:
        train_case(model, folder, CASES["mgs"], 2, Broken)
    except DivergedError as error:
        return str(error)
    return "went on"


def redraw_together(model: str, folder: Path) -> list[Any]:
    """For every step what this rank trains on, where more prompts of the first rank teach nothing than of the second.

    Domain, signal and prompt of each completion; then the step's metrics of dynamic sampling.
    """
    from transformers import AutoTokenizer

    from counterpoint.training import DomainGRPOTrainer
    from counterpoint.training.batches import DOMAIN_KEY, SIGNAL_KEY

    seen: list[Any] = []

    class Watched(stub_generation(DomainGRPOTrainer)):
        def _prepare_inputs(self, batch):
            inputs = super()._prepare_inputs(batch)
            prompts = self.processing_class.batch_decode(inputs["prompt_ids"], skip_special_tokens=True)
            items = [int(inputs["num_items_in_batch"])] * len(prompts)
            seen.extend(zip(inputs[DOMAIN_KEY].tolist(), inputs[SIGNAL_KEY].tolist(), prompts, items, strict=True))
            return inputs

    def often_dull(prompts, completions, **_):
        return [0.5 if hash_of(p) % 3 else len(c) for p, c in zip(prompts, completions, strict=True)]

    own = {"qa": {"temperature": 0.7}, "writing": {"max_completion_length": 2}}  # a generation for each kind
    args = grpo_args(folder, gradient_accumulation_steps=4, max_steps=2, dynamic_sampling=20, per_domain=own)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Watched(model, often_dull, args, MORE_DATA, processing_class=tokenizer)
        trainer.train()
    keys = ("extra_completions", *(f"replaced/{name}" for name in MORE_DATA))
    return [seen, [[line[key] for key in keys] for line in trainer.state.log_history if "loss" in line]]


def hash_of(text: str) -> int:
    """Of a prompt, the same in every process."""
    return sum(map(ord, text))


def odd_cases(model: str, folder: Path) -> tuple[Any, str]:
    """Two trainings in one launch."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    return redraw_together(model, folder / "redraw"), diverge_on_one(model, folder / "diverge")


def take_up_from_the_start(model: str, folder: Path) -> float:
    """A script's run dies before its first checkpoint and is taken up; gives the sum of this rank's weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from counterpoint.training import DomainGRPOTrainer

    class Dies(DomainGRPOTrainer):
        def training_step(self, *args, **kwargs):
            raise InterruptedError

    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    held_out = {name: [row | {"prompt": f"{row['prompt']} "} for row in rows] for name, rows in DATA.items()}
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")

    def build(cls: type) -> Any:
        args = grpo_args(folder / "unused", run=str(folder / "mine"), max_steps=2, save_steps=2, save_strategy="steps")
        loaded = AutoModelForCausalLM.from_pretrained(model)
        return cls(loaded, REWARDS, args, DATA, held_out, processing_class=tokenizer)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(InterruptedError):
            build(Dies).train()
        trainer = build(DomainGRPOTrainer)
        trainer.train(resume_from_checkpoint=True)
    return float(sum(param.detach().sum() for param in trainer.model.parameters()))


def evaluate_apart(model: str, folder: Path) -> dict[str, float]:
    """Metrics of TRL's evaluation on FSDP2, where each of two ranks has rows of another domain, sampled differently."""
    from transformers import AutoTokenizer

    from counterpoint.training import DomainGRPOTrainer

    own = {"math": {"temperature": 0.5, "max_completion_length": 3}, "code": {"top_p": 0.8}}
    held_out = {name: rows[: 1 + 2 * (name == "code")] for name, rows in DATA.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluated = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4, "max_steps": 1}
        sharded = {"fsdp": True, "fsdp_config": shard_on_cpu(), "gradient_checkpointing": False}
        args = grpo_args(folder, beta=0.1, per_domain=own, **evaluated, **sharded)
        tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        trainer = DomainGRPOTrainer(model, REWARDS, args, DATA, held_out, processing_class=tokenizer)
        trainer.train()
    return next(line for line in trainer.state.log_history if "eval_loss" in line)


def generate_together(batch_size: int) -> list[Any]:
    """Completions of the pocket model that the ranks sample together, as texts and lengths."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from counterpoint.evaluation import Sampling, generate
    from counterpoint.launch import Launch
    from counterpoint.pocket import model_path

    model = AutoModelForCausalLM.from_pretrained(model_path())
    tokenizer = AutoTokenizer.from_pretrained(model_path(), padding_side="left")
    prompts = [f"{i}+{i * i}=" for i in range(10)]
    counts: list[int] = []
    sampling = Sampling(max_new_tokens=6, batch_size=batch_size)
    completions = generate(model, tokenizer, prompts, sampling, counts.append, Launch.join())
    assert sum(counts) == len(prompts)
    return [(c.text, c.num_tokens, c.truncated) for c in completions]


if __name__ == "__main__":
    model_path, output = sys.argv[1], Path(sys.argv[2])
    results = train_cases(model_path, output, LAUNCHED_CASES)
    torch.save(results, output / f"rank-{os.environ.get('RANK', '0')}.pt")

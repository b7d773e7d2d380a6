"""``trl.GRPOTrainer`` for several domains: exact shares, one gradient per domain, any strategy to combine them."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from counterpoint.domains.domain_rewards import DomainRewards, SharedErrors, build_domain_rewards
from counterpoint.errors import DivergedError, DomainError, RunError, StrategyError, nearest
from counterpoint.runs.records import Record as JsonRecord
from counterpoint.runs.records import Row, Whole, read_json
from counterpoint.surgery import Record, Strategy, Surgeon, resolve_strategy
from counterpoint.surgery.strategies import needs_halves
from counterpoint.training.backends import (
    Reduction,
    check_accelerator,
    check_args,
    plain_names,
    separable,
    tensor_parallel,
)
from counterpoint.training.batches import (
    DOMAIN_KEY,
    PROMPT_KEY,
    Buffer,
    Rows,
    check_size,
    combine_domains,
    domain_of,
    regroup,
    rescale_per_domain,
    total_rewards,
)
from counterpoint.training.config import check_strategy, quota_sampler
from counterpoint.training.metrics import PER_MICRO_BATCH, batch_metrics, metrics_grouping, surgery_metrics

STATE_FILE = "counterpoint_state.json"
BUFFER_FILE = "counterpoint_buffer.safetensors"


class DomainGRPOTrainer(GRPOTrainer):
    """GRPO on several domains at once, their gradients combined by a strategy (MGS by default, arXiv 2602.02301).

    Every micro-batch holds one domain; each domain's gradient of a step is collected and the strategy combines them
    before clipping. Where nothing conflicts the update is the plain sum, which is TRL's own gradient. On several ranks
    (DDP, FSDP2) each domain's gradient is averaged over all of them, once per optimizer step.

    Overrides of ``GRPOTrainer``: ``_generate_and_score_completions`` (adds the domain, normalises advantages inside
    it), ``_calculate_rewards`` (keeps the rewards), ``_prepare_inputs`` (domain-pure micro-batches), ``training_step``
    (collect, combine), ``_get_train_sampler`` (exact shares), ``_save_checkpoint`` and ``train`` (exact resumption).

    Args:
        model: as in ``GRPOTrainer``.
        reward_funcs: a mapping from domain to one or several reward functions, or what ``GRPOTrainer`` takes, applied
            to all domains. Weights go into ``args.reward_weights``, in the order of domains, then functions.
        train_dataset: a dataset with the columns ``prompt`` and ``domain``, or a mapping from domain to rows.
        eval_dataset: the same for TRL's own evaluation; its metrics per domain are named ``eval_reward/{domain}`` etc.
        strategy: a name in ``counterpoint.surgery.STRATEGIES``, ``{"grouping": ..., "weighting": ...}`` or a
            ``Strategy``.
        shares: relative share of every step's prompts per domain; equal by default.
        share_rule: ``exact`` refuses shares that a step cannot meet; ``carry`` meets them over steps.
        grams_every: steps between records of all Grams. A strategy without surgery costs what TRL costs in between.
        buffers: where domain gradients wait, ``device``, ``bfloat16`` or ``cpu``; see ``counterpoint.surgery.Surgeon``.
        kwargs: everything else that ``GRPOTrainer`` takes.

    Raises:
        UnsupportedError: a setting or back end under which domain gradients would not be exact.
        DomainError: data without domains, shares that the batch cannot meet, or fewer micro-batches of a domain than
            the strategy needs.
        RewardError: a domain without a reward.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "grpo", "counterpoint"]  # type: ignore[misc]

    args: GRPOConfig  # type: ignore[assignment]
    model: Any
    num_generations: int
    _buffered_inputs: list[Buffer] | None  # type: ignore[assignment]

    def __init__(
        self,
        model: Any,
        reward_funcs: DomainRewards | Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any | Mapping[str, Rows] = None,
        eval_dataset: Any | Mapping[str, Rows] | None = None,
        *,
        strategy: str | Mapping[str, Any] | Strategy = "mgs",
        shares: Mapping[str, float] | None = None,
        share_rule: str = "exact",
        grams_every: int = 1,
        buffers: str = "device",
        **kwargs: Any,
    ) -> None:
        args = args or GRPOConfig("counterpoint-grpo")
        self.strategy = resolve_strategy(strategy)
        check_args(args)
        self.domain_rows = combine_domains(train_dataset)
        self.eval_rows = None if eval_dataset is None else combine_domains(eval_dataset, "eval_dataset")
        self.domains = self.domain_rows.domains
        self._check_eval_domains()
        self.grams_every, self.buffers = grams_every, buffers
        self._halves = needs_halves(self.strategy)
        sizes = {name: len(rows) for name, rows in self.domain_rows.rows.items()}
        self._sampler = quota_sampler(args, sizes, shares or dict.fromkeys(sizes, 1.0), share_rule)
        check_strategy(self.strategy, self._sampler)
        if isinstance(reward_funcs, Mapping):
            reward_funcs = build_domain_rewards(reward_funcs, self.domains)
        self._errors = SharedErrors()
        rewards: Any = self._errors.hold(reward_funcs) if args.world_size > 1 else reward_funcs
        eval_index = None if self.eval_rows is None else self.eval_rows.index
        super().__init__(model, rewards, args, self.domain_rows.index, eval_index, **kwargs)
        check_accelerator(self.accelerator, surgery=self.strategy.weighting != "ones")
        self._separable = separable(self.accelerator) and not tensor_parallel(self.accelerator)
        self.metrics_grouping = metrics_grouping(self.accelerator.unwrap_model(self.model), self.strategy)
        self.last_record: Record | None = None
        self._surgeon: Surgeon | None = None
        self._surgeon_state: dict[str, Any] | None = None
        self._backward = ExitStack()
        self._collects = False
        self._window_loss: torch.Tensor | None = None

    @property
    def surgeon(self) -> Surgeon:
        """What combines the domains' gradients. It is made at the first step: FSDP2 replaces parameters before it.

        Raises:
            StrategyError: asked for too early on several ranks.
        """
        if self._surgeon is None:
            if self.accelerator.num_processes > 1 and not self.is_in_train:
                raise StrategyError(
                    "The Surgeon is made when training starts. Ask for it in a callback, or afterwards."
                )
            self._surgeon = self._build_surgeon()
        return self._surgeon

    def _build_surgeon(self) -> Surgeon:
        reduction = Reduction.of(self.model_wrapped)
        named = plain_names(self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False))
        reduction.check(named)
        surgeon = Surgeon(named, self.strategy, seed=self.args.seed, buffers=self.buffers, average_over=reduction.group)
        if self._surgeon_state:
            surgeon.load_state_dict(self._surgeon_state)
        return surgeon

    def _check_eval_domains(self) -> None:
        unknown = set(self.eval_rows.domains) - set(self.domains) if self.eval_rows else set()
        if unknown:
            name = sorted(unknown)[0]
            raise DomainError(f"eval_dataset: {name!r} is no domain of train_dataset; {nearest(name, self.domains)}")

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return self._sampler  # type: ignore[return-value]

    def _prepare_inputs(self, generation_batch: Any) -> Buffer:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        assert self._buffered_inputs is not None
        if self._buffered_inputs is not before:
            self._buffered_inputs = regroup(self._buffered_inputs, self._step_quotas(), halves=self._halves)
        self._begin_micro_batch()
        return self._buffered_inputs[self._slot]

    def _step_quotas(self) -> list[list[int]] | None:
        """Micro-batches of each domain in every step of the generation just made; None where a step holds several."""
        sampler, geometry = self._sampler, self._sampler.geometry
        if geometry.steps_per_generation < geometry.accumulation:
            return None
        period = self._step // (geometry.steps_per_generation * geometry.iterations)
        first = period * geometry.period_quota_steps
        return [
            [units * geometry.unit_micro_batches for units in sampler.quotas.counts(first + i)]
            for i in range(geometry.period_quota_steps)
        ]

    # Generation

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._rewards_BF = super()._calculate_rewards(*args, **kwargs)
        self._errors.raise_together(self.accelerator)
        check_size(self._rewards_BF, self.reward_weights, self.reward_func_names)
        return self._rewards_BF

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Buffer:
        rows = self.domain_rows if self.model.training else self.eval_rows
        assert rows is not None
        output = self._sample(rows.expand(inputs))
        domain_B = torch.tensor([self.domains.index(e["domain"]) for e in inputs], device=self.accelerator.device)
        output[DOMAIN_KEY] = domain_B
        output[PROMPT_KEY] = torch.arange(len(inputs), device=domain_B.device) // self.num_generations
        all_domain_B = self.accelerator.gather(domain_B)
        self._normalise_advantages(output, all_domain_B)
        self._log_batch(output, all_domain_B)
        return output

    def _sample(self, rows: list[dict[str, Any]]) -> Buffer:
        try:
            return super()._generate_and_score_completions(rows)
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            raise self._diverged("the model's probabilities are not numbers") from error

    def _normalise_advantages(self, output: Buffer, all_domain_B: torch.Tensor) -> None:
        normalised_sum = self.multi_objective_aggregation == "normalize_then_sum"
        if self.scale_rewards != "batch" and not normalised_sum:
            return
        all_B = rescale_per_domain(
            self.accelerator.gather(output["advantages"]),
            total_rewards(self._rewards_BF, self.reward_weights),
            all_domain_B,
            normalised_sum=normalised_sum,
        )
        num_local = len(output["advantages"])
        output["advantages"] = all_B[self.accelerator.process_index * num_local :][:num_local]

    def _log_batch(self, output: Buffer, all_domain_B: torch.Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        completion_ids, mask = output["completion_ids"], output["completion_mask"]
        ended_B = torch.isin(completion_ids, torch.tensor(self.eos_token_ids, device=completion_ids.device)).any(dim=1)
        # a truncated completion fills the width; mask_truncated_completions has set its mask to zero
        lengths_B = self.accelerator.gather(mask.sum(dim=1).masked_fill(~ended_B, completion_ids.shape[1]))
        metrics = batch_metrics(
            self.domains,
            all_domain_B,
            self._rewards_BF,
            self.reward_weights,
            self.reward_func_names,
            lengths_B,
            self.accelerator.gather(~ended_B),
            self.num_generations if mode == "train" else self.num_generations_eval or self.num_generations,
        )
        for key, value in metrics.items():
            self._metrics[mode][key].append(value)

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"Step {self.state.global_step + 1}: {what}. Start a new run, from the last checkpoint as its model if you "
            "like, with a lower learning_rate or a smaller max_grad_norm."
        )

    # Training

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's step on one micro-batch, then collect at the end of a domain and combine at the end of a window."""
        counts = {key: len(self._metrics["train"][key]) for key in PER_MICRO_BATCH if key in self._metrics["train"]}
        slot = self._slot
        with ExitStack() as self._backward:
            loss = super().training_step(model, inputs, num_items_in_batch)
        assert self._buffered_inputs is not None
        domain = self.domains[domain_of(self._buffered_inputs[slot])]
        self._copy_metrics(domain, counts)
        self._window_loss = loss if self._window_loss is None else self._window_loss + loss
        if self._collects:
            self.surgeon.collect(domain, last=self.accelerator.sync_gradients)
        if self.accelerator.sync_gradients:
            self._end_window()
        return loss

    def _begin_micro_batch(self) -> None:
        """Settles whether this micro-batch's gradient is collected and averaged, before its forward pass.

        Where domains are not kept apart, TRL's own choice stands: averaged in the window's last backward.
        """
        self._collects = self._separates_domains and (self._halves or self._domain_ends())
        if self._separates_domains:
            each = self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
            reduction = Reduction.of(self.model_wrapped)
            self._backward.enter_context(reduction.backward(reduce=self._collects or each))

    @property
    def _separates_domains(self) -> bool:
        """Whether this step's domains need gradients of their own; plain mixing needs them only to be looked at."""
        if self.strategy.weighting == "ones":
            return self._separable and self.state.global_step % self.grams_every == 0
        return True

    def _domain_ends(self) -> bool:
        """Whether the micro-batch at hand is the last of its domain before another one, or of the window."""
        following = self._step + 1
        if self.accelerator.sync_gradients or self._generates(following):
            return True
        assert self._buffered_inputs is not None
        after = self._buffered_inputs[following % len(self._buffered_inputs)]
        return domain_of(after) != domain_of(self._buffered_inputs[self._slot])

    @property
    def _slot(self) -> int:
        """Position in the generation buffer of the micro-batch that comes next."""
        assert self.args.steps_per_generation is not None
        return self._step % self.args.steps_per_generation

    def _generates(self, micro_step: int) -> bool:
        """Whether ``micro_step`` samples new completions."""
        assert self.args.steps_per_generation is not None
        return micro_step % (self.args.steps_per_generation * self.num_iterations) == 0

    def _end_window(self) -> None:
        assert self._window_loss is not None
        loss, self._window_loss = self._window_loss, None
        losses = self.accelerator.gather(loss.reshape(1))  # ranks must stop together
        if not (finite := losses.isfinite()).all():
            self.surgeon.reset()
            raise self._diverged(f"the loss is {losses[~finite][0].item()}, so the step was not taken")
        if not self._separates_domains:
            return
        self.last_record = self.surgeon.combine()
        for key, value in surgery_metrics(self.last_record, self.metrics_grouping).items():
            self._metrics["train"][key].append(value)

    def _copy_metrics(self, domain: str, counts: Mapping[str, int]) -> None:
        metrics = self._metrics["train"]
        for key, name in PER_MICRO_BATCH.items():
            for value in metrics.get(key, ())[counts.get(key, 0) :]:
                metrics[f"{name}/{domain}"].append(value)

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        parts = (getattr(param, "_local_tensor", param) for param in model.parameters() if param.requires_grad)
        finite = torch.tensor([all(bool(part.isfinite().all()) for part in parts)], device=self.accelerator.device)
        if not self.accelerator.gather(finite).all():
            raise self._diverged("weights are no longer numbers, so no checkpoint was written over good ones")
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        buffer = None if self._generates(self._step) else self._buffered_inputs
        # Plain mixing never needs a Surgeon, and works on back ends for which none can be made.
        surgeon = self._surgeon.state_dict() if self._surgeon else self._surgeon_state or {}
        state = TrainerState(self._step, surgeon, buffer)
        save_state(folder, state, self.accelerator.process_index, self.accelerator.num_processes)

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """``GRPOTrainer.train``; a resumed run continues with the numbers of one that was never interrupted."""
        checkpoint = self._resolve_checkpoint(resume_from_checkpoint)
        if checkpoint is not None:
            accelerator = self.accelerator
            state = load_state(
                Path(checkpoint), accelerator.process_index, accelerator.num_processes, accelerator.device
            )
            self._step, self._surgeon_state, self._buffered_inputs = state.micro_step, state.surgeon, state.buffer
            self._surgeon = None
        return super().train(checkpoint, *args, **kwargs)

    def _resolve_checkpoint(self, requested: str | Path | bool | None) -> str | None:
        if isinstance(requested, str | Path):
            return str(requested)
        if not requested:
            return None
        found = get_last_checkpoint(str(self.args.output_dir))
        if found is None:
            raise RunError(f"{self.args.output_dir} holds no checkpoint to resume from. Train without resuming.")
        return found


class _Numbers(JsonRecord):
    micro_step: Whole
    micro_batches: Whole
    num_ranks: Whole
    surgeon: Row


@dataclass(frozen=True)
class TrainerState:
    """The micro-step counter, the surgeon's state and the completions that are still to be trained on.

    ``buffer`` is None where the next step generates anew. Each rank has completions of its own.
    """

    micro_step: int
    surgeon: dict[str, Any]
    buffer: list[Buffer] | None


def save_state(folder: Path, state: TrainerState, rank: int, num_ranks: int) -> None:
    """Writes what rank ``rank`` must add to TRL's checkpoint in ``folder``.

    Raises:
        RunError: the buffer holds something that is no tensor, so it cannot be kept without pickling.
    """
    tensors: dict[str, torch.Tensor] = {}
    for i, micro_batch in enumerate(state.buffer or ()):
        for key, value in micro_batch.items():
            if value is None:
                continue
            if not isinstance(value, torch.Tensor):
                raise RunError(
                    f"Checkpoint {folder}: the generation buffer holds {key!r} of type {type(value).__name__}, which "
                    "cannot be saved. Save at a generation boundary: make save_steps a multiple of "
                    "steps_per_generation * num_iterations / gradient_accumulation_steps."
                )
            tensors[f"{i}/{key}"] = value.detach().cpu().contiguous().clone()
    if tensors:
        save_file(tensors, _ranked(folder, BUFFER_FILE, rank))
    if rank == 0:
        numbers = {
            "micro_step": state.micro_step,
            "micro_batches": len(state.buffer or ()),
            "num_ranks": num_ranks,
            "surgeon": state.surgeon,
        }
        (folder / STATE_FILE).write_text(json.dumps(numbers))


def load_state(folder: Path, rank: int, num_ranks: int, device: torch.device) -> TrainerState:
    """What :func:`save_state` wrote.

    Raises:
        RunError: the folder was not written by a ``DomainGRPOTrainer``, or by one with another number of ranks.
    """
    state = read_numbers(folder, num_ranks)
    if not state["micro_batches"]:
        return TrainerState(state["micro_step"], state["surgeon"], None)
    buffer: list[Buffer] = [{} for _ in range(state["micro_batches"])]
    for name, tensor in load_file(_ranked(folder, BUFFER_FILE, rank)).items():
        i, key = name.split("/", 1)
        buffer[int(i)][key] = tensor.to(device)
    return TrainerState(state["micro_step"], state["surgeon"], buffer)


def read_numbers(folder: Path, num_ranks: int) -> dict[str, Any]:
    """The part of the state that all ranks share, once it is known to fit ``num_ranks`` of them.

    Raises:
        RunError: as :func:`load_state`.
    """
    if not (folder / STATE_FILE).exists():
        raise RunError(
            f"Checkpoint {folder}: no {STATE_FILE}, so it was not written by counterpoint. Resume from one that was, "
            "or start a new run with it as the model."
        )
    state = read_json(folder / STATE_FILE, _Numbers, "Resume from another checkpoint.")
    if state["num_ranks"] != num_ranks:
        raise RunError(
            f"Checkpoint {folder}: written by {_processes(state['num_ranks'])}, and this is {_processes(num_ranks)}. "
            "Which prompts a step holds depends on that number, so the run would not go on with the same numbers. "
            f"Resume with {_processes(state['num_ranks'])}, or start a new run with the checkpoint as its model."
        )
    return state


def _processes(number: int) -> str:
    return "one process" if number == 1 else f"{number} processes"


def _ranked(folder: Path, name: str, rank: int) -> Path:
    return folder / (name if rank == 0 else f"rank-{rank}-{name}")

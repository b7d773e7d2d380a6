"""``trl.GRPOTrainer`` for several domains: exact shares, one gradient per domain, any strategy to combine them."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import Sampler
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig

from counterpoint.domains.domain_rewards import DomainRewards, build_domain_rewards
from counterpoint.errors import DomainError, RunError, StrategyError, nearest
from counterpoint.surgery import Record, Strategy, Surgeon, resolve_strategy
from counterpoint.surgery.strategies import needs_halves
from counterpoint.training.dataset import Rows, combine_domains
from counterpoint.training.generation import DomainGeneration
from counterpoint.training.metrics import PER_MICRO_BATCH, metrics_grouping, surgery_metrics
from counterpoint.training.quotas import check_strategy, quota_sampler
from counterpoint.training.reduction import Reduction, plain_names
from counterpoint.training.regroup import Buffer, domain_of, regroup
from counterpoint.training.shared_errors import SharedErrors
from counterpoint.training.support import check_accelerator, check_args, separable, tensor_parallel
from counterpoint.training.trainer_state import TrainerState, load_state, save_state


class DomainGRPOTrainer(DomainGeneration):
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

"""``trl.GRPOTrainer`` for several domains: exact shares, one gradient per domain, any strategy to combine them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import Sampler
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from counterpoint.domains.domain_rewards import DomainRewards, build_domain_rewards
from counterpoint.errors import DivergedError, DomainError, RunError, nearest
from counterpoint.surgery import Record, Strategy, Surgeon, resolve_strategy
from counterpoint.training.advantages import rescale_per_domain, total_rewards
from counterpoint.training.dataset import Rows, combine_domains
from counterpoint.training.metrics import PER_MICRO_BATCH, batch_metrics, metrics_grouping, surgery_metrics
from counterpoint.training.quotas import quota_sampler
from counterpoint.training.regroup import DOMAIN_KEY, Buffer, domain_of, regroup
from counterpoint.training.support import check_accelerator, check_args
from counterpoint.training.trainer_state import load_state, save_state


class DomainGRPOTrainer(GRPOTrainer):
    """GRPO on several domains at once, their gradients combined by a strategy (MGS by default, arXiv 2602.02301).

    Every micro-batch holds one domain; each domain's gradient of a step is collected and the strategy combines them
    before clipping. Where nothing conflicts the update is the plain sum, which is TRL's own gradient.

    Overrides of ``GRPOTrainer``: ``_generate_and_score_completions`` (adds the domain, normalises advantages inside
    it), ``_calculate_rewards`` (keeps the rewards), ``_prepare_inputs`` (domain-pure micro-batches), ``training_step``
    (collect, combine), ``_get_train_sampler`` (exact shares), ``_save_checkpoint`` and ``train`` (exact resumption).

    Args:
        model: as in ``GRPOTrainer``.
        reward_funcs: a mapping from domain to one or several reward functions, or what ``GRPOTrainer`` takes, applied
            to all domains. Weights go into ``args.reward_weights``, in the order of domains, then functions.
        train_dataset: a dataset with the columns ``prompt`` and ``domain``, or a mapping from domain to rows.
        eval_dataset: the same for TRL's own evaluation; its metrics per domain are named ``eval_reward/{domain}`` etc.
        strategy: a name (``mixed``, ``pcgrad``, ``mgs``, ``mgs-tensor``), ``{"grouping": ..., "weighting": ...}`` or a
            ``Strategy``.
        shares: relative share of every step's prompts per domain; equal by default.
        share_rule: ``exact`` refuses shares that a step cannot meet; ``carry`` meets them over steps.
        grams_every: steps between records of all Grams. A strategy without surgery costs what TRL costs in between.
        kwargs: everything else that ``GRPOTrainer`` takes.

    Raises:
        UnsupportedError: a setting or back end under which domain gradients would not be exact.
        DomainError: data without domains, or shares that the batch cannot meet.
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
        **kwargs: Any,
    ) -> None:
        args = args or GRPOConfig("counterpoint-grpo")
        self.strategy = resolve_strategy(strategy)
        check_args(args)
        self.domain_rows = combine_domains(train_dataset)
        self.eval_rows = None if eval_dataset is None else combine_domains(eval_dataset, "eval_dataset")
        self.domains = self.domain_rows.domains
        self._check_eval_domains()
        self.grams_every = grams_every
        sizes = {name: len(rows) for name, rows in self.domain_rows.rows.items()}
        self._sampler = quota_sampler(args, sizes, shares or dict.fromkeys(sizes, 1.0), share_rule)
        if isinstance(reward_funcs, Mapping):
            reward_funcs = build_domain_rewards(reward_funcs, self.domains)
        accelerator_config: Any = args.accelerator_config
        accelerator_config.gradient_accumulation_kwargs = {"sync_each_batch": True}
        rewards: Any = reward_funcs
        eval_index = None if self.eval_rows is None else self.eval_rows.index
        super().__init__(model, rewards, args, self.domain_rows.index, eval_index, **kwargs)
        check_accelerator(self.accelerator, surgery=self.strategy.weighting != "ones")
        policy = self.accelerator.unwrap_model(self.model)
        self.surgeon = Surgeon(policy, strategy=self.strategy, seed=args.seed)
        self.metrics_grouping = metrics_grouping(policy, self.strategy)
        self.last_record: Record | None = None
        self._window_loss: torch.Tensor | None = None

    def _check_eval_domains(self) -> None:
        unknown = set(self.eval_rows.domains) - set(self.domains) if self.eval_rows else set()
        if unknown:
            name = sorted(unknown)[0]
            raise DomainError(f"eval_dataset: {name!r} is no domain of train_dataset; {nearest(name, self.domains)}")

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return self._sampler  # type: ignore[return-value]

    # Generation

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._rewards_BF = super()._calculate_rewards(*args, **kwargs)
        return self._rewards_BF

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Buffer:
        rows = self.domain_rows if self.model.training else self.eval_rows
        assert rows is not None
        output = self._sample(rows.expand(inputs))
        domain_B = torch.tensor([self.domains.index(e["domain"]) for e in inputs], device=self.accelerator.device)
        output[DOMAIN_KEY] = domain_B
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

    def _prepare_inputs(self, generation_batch: Any) -> Buffer:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training or self._buffered_inputs is before:
            return inputs
        assert self._buffered_inputs is not None
        self._buffered_inputs = regroup(self._buffered_inputs, self._step_quotas())
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
        loss = super().training_step(model, inputs, num_items_in_batch)
        assert self._buffered_inputs is not None
        domain_id = domain_of(self._buffered_inputs[slot])
        self._copy_metrics(self.domains[domain_id], counts)
        self._window_loss = loss if self._window_loss is None else self._window_loss + loss
        if self._separates_domains and self._domain_ends(domain_id):
            self.surgeon.collect(self.domains[domain_id])
        if self.accelerator.sync_gradients:
            self._end_window()
        return loss

    @property
    def _separates_domains(self) -> bool:
        """Whether this step's domains need gradients of their own; plain mixing needs them only to be looked at."""
        return self.strategy.weighting != "ones" or self.state.global_step % self.grams_every == 0

    def _domain_ends(self, domain_id: int) -> bool:
        if self.accelerator.sync_gradients:
            return True
        if self._generates_next:
            return True
        assert self._buffered_inputs is not None
        return domain_of(self._buffered_inputs[self._slot]) != domain_id

    @property
    def _slot(self) -> int:
        """Position in the generation buffer of the micro-batch that comes next."""
        assert self.args.steps_per_generation is not None
        return self._step % self.args.steps_per_generation

    @property
    def _generates_next(self) -> bool:
        """Whether the next micro-step samples new completions."""
        assert self.args.steps_per_generation is not None
        return self._step % (self.args.steps_per_generation * self.num_iterations) == 0

    def _end_window(self) -> None:
        assert self._window_loss is not None
        loss, self._window_loss = self._window_loss, None
        if not torch.isfinite(loss):
            self.surgeon.reset()
            raise self._diverged(f"the loss is {loss.item()}, so the step was not taken")
        if not self._separates_domains:
            return
        self.last_record = self.surgeon.combine()
        for key, value in surgery_metrics(self.last_record, self.metrics_grouping).items():
            self._metrics["train"][key].append(value)

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"Step {self.state.global_step + 1}: {what}. Continue from the last checkpoint with a lower learning_rate "
            "or a smaller max_grad_norm."
        )

    def _copy_metrics(self, domain: str, counts: Mapping[str, int]) -> None:
        metrics = self._metrics["train"]
        for key, name in PER_MICRO_BATCH.items():
            for value in metrics.get(key, ())[counts.get(key, 0) :]:
                metrics[f"{name}/{domain}"].append(value)

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not all(bool(param.isfinite().all()) for param in model.parameters() if param.requires_grad):
            raise self._diverged("weights are no longer numbers, so no checkpoint was written over good ones")
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        buffer = None if self._generates_next else self._buffered_inputs
        save_state(folder, self._step, self.surgeon.state_dict(), buffer, self.accelerator.process_index)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """``GRPOTrainer.train``; a resumed run continues with the numbers of one that was never interrupted."""
        checkpoint = self._resolve_checkpoint(resume_from_checkpoint)
        if checkpoint is not None:
            self._step, surgeon_state, self._buffered_inputs = load_state(
                Path(checkpoint), self.accelerator.process_index, self.accelerator.device
            )
            self.surgeon.load_state_dict(surgeon_state)
        return super().train(checkpoint, *args, **kwargs)

    def _resolve_checkpoint(self, requested: str | bool | None) -> str | None:
        if isinstance(requested, str):
            return requested
        if not requested:
            return None
        found = get_last_checkpoint(str(self.args.output_dir))
        if found is None:
            raise RunError(f"{self.args.output_dir} holds no checkpoint to resume from. Train without resuming.")
        return found

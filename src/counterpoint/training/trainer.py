"""``trl.GRPOTrainer`` for several domains: exact shares, one gradient per domain, any strategy to combine them."""

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from trl import GRPOConfig, GRPOTrainer

from counterpoint.domains.domain_rewards import DOMAIN_COLUMN, ROW_COLUMN, DomainRewards
from counterpoint.errors import DivergedError, StrategyError
from counterpoint.surgery import Record, Surgeon, build_weighting, resolve_strategy
from counterpoint.training.backends import (
    Reduction,
    all_finite,
    balancing_loss,
    check_accelerator,
    check_args,
    check_model,
    check_peft,
    separable,
    tensor_parallel,
)
from counterpoint.training.batches import (
    DOMAIN_KEY,
    PROMPT_KEY,
    SIGNAL_KEY,
    Buffer,
    DomainRows,
    Rows,
    check_size,
    combine_domains,
    domain_of,
    regroup,
    rescale_per_domain,
    total_rewards,
)
from counterpoint.training.card import PAPER, add_domains
from counterpoint.training.config import DomainGRPOConfig, check_strategy, own_settings, quota_sampler
from counterpoint.training.metrics import batch_metrics, copy_per_domain, surgery_metrics, unscaled
from counterpoint.training.mix import Mix
from counterpoint.training.other_rows import OtherRows
from counterpoint.training.per_domain import PerDomain
from counterpoint.training.redrawing import Redraws
from counterpoint.training.rewards import Rewards
from counterpoint.training.scripted import ScriptRun, check_script
from counterpoint.training.state import (
    RenamedWeights,
    TrainerState,
    find_checkpoint,
    kept_settings,
    load_state,
    save_state,
)
from counterpoint.training.weighing import Weighing


class DomainGRPOTrainer(RenamedWeights, OtherRows, PerDomain, GRPOTrainer):
    """
    Trainer for Group Relative Policy Optimization on several domains at once, whose gradients a strategy combines:
    by default Modular Gradient Surgery ([arXiv 2602.02301](https://huggingface.co/papers/2602.02301)).

    Every micro-batch holds one domain; each domain's gradient of a step is collected and the strategy combines them
    before clipping. Where nothing conflicts the update is the plain sum, which is TRL's own gradient. On several ranks
    (DDP, FSDP2) each domain's gradient is averaged over all of them, once per optimizer step.

    Example:

    ```python
    >>> trainer = DomainGRPOTrainer(
    ...     model="Qwen/Qwen3-0.6B",
    ...     reward_funcs={"math": math_reward, "code": code_reward},
    ...     args=DomainGRPOConfig(strategy="mgs", gradient_accumulation_steps=8),
    ...     train_dataset={"math": math, "code": code},
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): as in [`~trl.GRPOTrainer`].
        reward_funcs (`dict` or `RewardFunc | list[RewardFunc]`, *optional*):
            A mapping from domain to one reward, a list of them, or a mapping from name to reward; a reward is whatever
            [`~trl.GRPOTrainer`] takes for one. Or what it takes as a whole, applied to all domains. Weights go into
            `args.reward_weights`, in the order of domains, then rewards.
        args ([`DomainGRPOConfig`] or [`~trl.GRPOConfig`], *optional*):
            Configuration of this trainer. A plain [`~trl.GRPOConfig`] has the defaults of what ours adds.
        train_dataset ([`~datasets.Dataset`] or `dict[str, Dataset | list]`):
            A dataset with the columns `prompt` and `domain`, or a mapping from domain to rows.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset | list]`, *optional*):
            The same for TRL's own evaluation, whose metrics per domain are named `eval_reward/DOMAIN`.
        reward_processing_classes (*optional*):
            As in [`~trl.GRPOTrainer`], in the order of the rewards, or a mapping shaped as `reward_funcs` is.
        processing_class, callbacks, optimizers, quantization_config, peft_config, tools, rollout_func, environment_factory:
            as in [`~trl.GRPOTrainer`].

    Raises:
        UnsupportedError: a setting, an adapter or a back end under which domain gradients would not be exact.
        DomainError: data without domains, shares that the batch cannot meet, or fewer micro-batches of a domain than
            the strategy needs.
        RewardError: a domain without a reward.
        DivergedError: while training, a loss or weights that are no numbers; TRL would go on.
    """  # noqa: E501

    _tag_names: ClassVar[list[str]] = ["trl", "grpo", "counterpoint"]  # type: ignore[misc]
    _name = "GRPO on several domains"
    _paper = PAPER

    args: GRPOConfig  # type: ignore[assignment]
    model: Any
    num_generations: int
    num_generations_eval: int
    _buffered_inputs: list[Buffer] | None  # type: ignore[assignment]
    _surgeon: Surgeon | None
    _surgeon_state: dict[str, Any]

    def __init__(
        self,
        model: Any,
        reward_funcs: DomainRewards | Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Dataset | Mapping[str, Rows] | None = None,
        eval_dataset: Dataset | Mapping[str, Rows] | None = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: list[Any] | None = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = DomainGRPOConfig(f"{name.split('/')[-1]}-GRPO")
        # All that can be refused is, before TRL loads a model or starts an engine.
        check_args(args)
        check_peft(peft_config)
        self._own = own_settings(args)
        self.strategy = resolve_strategy(self._own["strategy"])
        if isinstance(model, nn.Module) and peft_config is None:
            check_model(model, self.strategy)
        self._needs_prompt = environment_factory is None
        self.domain_rows = combine_domains(train_dataset, needs_prompt=self._needs_prompt)
        self.domains = self.domain_rows.domains
        shares = self._own["shares"] or dict.fromkeys(self.domains, 1.0)
        self._take_settings(args, tools=tools, rollout_func=rollout_func, environment_factory=environment_factory)
        self._plan_steps(args, shares)
        self._always_separates = self.strategy.weighting != "ones" or self._weighing.rule.uses_gradients
        self._rewards = Rewards(reward_funcs, reward_processing_classes, self.domains)
        if args.world_size > 1:
            self._rewards.hold_errors()
        self.eval_rows = None if eval_dataset is None else self._held_out_rows(eval_dataset, "eval_dataset")
        self.reward_sources, self.shares, self.grams_every = reward_funcs, dict(shares), self._own["grams_every"]
        self._script_run: ScriptRun | None = None
        if self._own["run"] is not None:
            check_script(reward_funcs, self.eval_rows, self.domains)
            self._script_run = ScriptRun(self._own["run"], args)
        self._halves = build_weighting(self.strategy.weighting).uses_halves
        self.last_record: Record | None = None
        """What the last step that kept domains apart left."""
        taken: list[Any] = [model, self._rewards.functions, args, self.domain_rows.index]
        taken += [self.eval_rows and self.eval_rows.index, processing_class, self._rewards.processing_classes]
        taken += [callbacks, optimizers, quantization_config, peft_config, tools, rollout_func, environment_factory]
        super().__init__(*taken)
        self._rewards.limit(self.reward_funcs, self.reward_func_names)
        self._prepare_heads()
        self._balance_experts()
        self._separable = separable(self.accelerator) and not tensor_parallel(self.accelerator)
        self._forget()

    def _plan_steps(self, args: GRPOConfig, shares: Mapping[str, float]) -> None:
        """Which prompts the steps hold, and what each domain weighs in them."""
        own, rows = self._own, self.domain_rows
        self._sampler = quota_sampler(args, rows.sizes, shares, own["share_rule"], rows.mixed, own["schedule"])
        check_strategy(self.strategy, self._sampler)
        self._weighing = Weighing(own["balance"], args, self.domains)
        self._redraws = Redraws(own["dynamic_sampling"], args, rows)
        self.held_out: dict[str, float] = {}
        """Last held-out mean reward of each domain, for the model card and a curriculum."""
        self._mix = Mix(args, own, shares, self._sampler, self.strategy, self._weighing, self.held_out)

    def create_accelerator_and_postprocess(self) -> None:
        """Refuses back ends and models as soon as both are there: TRL starts vLLM later in its constructor."""
        super().create_accelerator_and_postprocess()
        check_accelerator(self.accelerator, surgery=self._always_separates)
        check_model(self.model, self.strategy)

    def _balance_experts(self) -> None:
        if not self.aux_loss_enabled:
            return
        asked = self.args.router_aux_loss_coef
        self.router_aux_loss_coef, message = balancing_loss(self.router_aux_loss_coef, asked)
        self.aux_loss_enabled = self.router_aux_loss_coef != 0.0
        if self.accelerator.is_main_process:
            warnings.warn(message, UserWarning, stacklevel=3)

    def _forget(self) -> None:
        """Makes ready for the first step of a training."""
        self._step, self._buffered_inputs = 0, None
        self._surgeon, self._surgeon_state, self._collects = None, {}, False
        self._rewards.normalizer.load_state_dict({})
        self._weighing.forget()
        self._redraws.load_state_dict({})
        self._mix.forget()
        self._window_loss: torch.Tensor | None = None
        self._micro_batch = ExitStack()

    @property
    def surgeon(self) -> Surgeon:
        """What combines the domains' gradients. It is made at the first step: FSDP2 replaces parameters before it.

        Raises:
            StrategyError: asked for too early on several ranks.
        """
        if self._surgeon is None:
            if self.accelerator.num_processes > 1 and not self.is_in_train:
                raise StrategyError("The Surgeon is made when training starts. Ask in a callback, or afterwards.")
            reduction = Reduction.of(self.model_wrapped)
            model = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
            reduction.check(model)
            own = {"seed": self.args.seed, "buffers": self._own["buffers"]}
            self._surgeon = Surgeon(model, self.strategy, average_over=reduction.group, **own)
            if self._surgeon_state:
                self._surgeon.load_state_dict(self._surgeon_state)
        return self._surgeon

    # Rows: TRL iterates an index, and gets the full rows when it generates.

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return self._sampler  # type: ignore[return-value]

    # Generation

    def _generate(self, prompts: list[Any]) -> Any:
        # What TRL counts itself: a mask says which tokens of several turns are the model's own.
        generated = super()._generate(prompts)
        _, completion_ids, tool_mask, *_ = generated
        device = self.accelerator.device
        lengths = map(len, completion_ids) if tool_mask is None else map(sum, tool_mask)
        self._lengths_B = torch.tensor(list(lengths), device=device)
        self._truncated_B = torch.tensor(self._cut_off(completion_ids), device=device)
        return generated

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        # The domains go to our own reward functions beside the columns: a row may have a column of any name.
        domains = [domain for domain, _ in self._places]
        rows = [
            {**row, DOMAIN_COLUMN: domain, ROW_COLUMN: number}
            for row, (domain, number) in zip(inputs, self._places, strict=True)
        ]
        self._rewards.see(domains)
        if self.log_completions:
            self._log_completion_extra("domain", domains)
        self._rewards_BF = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        self._rewards.raise_together(self.accelerator.num_processes)
        # A completion that one reward could not score has no reward at all; TRL then gives it no advantage.
        failed_B = self._rewards_BF.isinf().any(dim=1, keepdim=True)
        self._rewards_BF = self._rewards_BF.masked_fill(failed_B, torch.nan)
        if self.model.training:  # evaluations stay comparable
            counts = not self._redraws.busy
            self._rewards_BF = self._rewards.normalise(self._rewards_BF, domains, self.reward_func_names, counts=counts)
        check_size(self._rewards_BF, self.reward_weights, self.reward_func_names)
        return self._rewards_BF

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Buffer:
        # Full rows in place of places in the index; then the domain of every row, and advantages inside it.
        rows = self.domain_rows if self.model.training else self.eval_rows
        assert rows is not None
        places = [rows.place(example) for example in inputs]
        output = self._complete(rows, places)
        all_domain_B = self.accelerator.gather(output[DOMAIN_KEY])
        self._normalise_advantages(output, all_domain_B)
        self._log_batch(all_domain_B)
        if self.model.training and self._redraws.rounds:
            return self._redraws.fill(output, places, partial(self._complete, rows), self._tokenizer.pad_token_id, self)
        return output

    def _complete(self, rows: DomainRows, places: list[tuple[str, int]]) -> Buffer:
        """Completions of the rows at ``places``, with the domain, prompt and signal of each."""
        self._places = places
        columns = ("prompt", "image", "images", "domain") if self.args.remove_unused_columns else None
        output = self._sample(rows.expand(places, columns))
        ids = [self.domains.index(name) if name in self.domains else -1 for name, _ in places]
        domain_B = torch.tensor(ids, device=self.accelerator.device)
        output[DOMAIN_KEY] = domain_B
        output[PROMPT_KEY] = self._prompt_ids(domain_B)
        if self.model.training:
            all_domain_B = self.accelerator.gather(domain_B)
            output[SIGNAL_KEY] = self._own_rows(self._teaching(all_domain_B))
            self._regroup_advantages(output, all_domain_B)
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
        output["advantages"] = self._own_rows(all_B)

    def _own_rows(self, all_B: torch.Tensor) -> torch.Tensor:
        """This rank's part of what all ranks have."""
        num_local = len(self._places)
        return all_B[self.accelerator.process_index * num_local :][:num_local]

    def _log_batch(self, all_domain_B: torch.Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        metrics = batch_metrics(
            self.domains,
            all_domain_B,
            self._rewards_BF,
            self.reward_weights,
            self.reward_func_names,
            self.accelerator.gather(self._lengths_B),
            self.accelerator.gather(self._truncated_B),
            self._group_size(),
        )
        if mode == "train":
            self._weighing.see(metrics, self.shares)
            self._mix.see(self.state.global_step, metrics)
        metrics |= {f"reward_raw/{name}": mean for name, mean in self._rewards.raw.items() if mode == "train"}
        for key, (value, num_rows) in metrics.items():
            # TRL averages what stands here over batches; a value for each row makes that an average over rows
            self._metrics[mode][key] += [value] * num_rows

    # Training
    #
    # TRL calls training_step for every micro-batch, and that calls _prepare_inputs, then forward and backward. Whether
    # the back end averages this backward pass over ranks is known only inside _prepare_inputs (it may generate), and
    # must hold until the pass is over. So training_step opens an ExitStack, _begin_micro_batch enters the back end's
    # context in it, and the end of training_step leaves both.

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's step on one micro-batch, then collect at the end of a domain and combine at the end of a window."""
        counts = {key: len(values) for key, values in self._metrics["train"].items()}
        slot = self._slot
        with ExitStack() as self._micro_batch:
            loss = super().training_step(model, inputs, num_items_in_batch)
        assert self._buffered_inputs is not None
        domain = self.domains[domain_of(self._buffered_inputs[slot])]
        copy_per_domain(self._metrics["train"], domain, counts)
        self._window_loss = loss if self._window_loss is None else self._window_loss + loss
        if self._collects:
            self.surgeon.collect(domain, last=self.accelerator.sync_gradients)
        if self.accelerator.sync_gradients:
            self._end_window()
        return loss

    def _prepare_inputs(self, generation_batch: Any) -> Buffer:
        # Domain-pure micro-batches in place of those that TRL has just cut.
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        assert self._buffered_inputs is not None
        if self._buffered_inputs is not before:
            steps = self._sampler.generation_quotas(self._step)
            self._buffered_inputs = regroup(self._buffered_inputs, steps, halves=self._halves)
        self._begin_micro_batch()
        weights = self._mix.weights(self.state.global_step)
        return self._weighing.begin(self._buffered_inputs, self._slot, self.accelerator, weights)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """TRL's loss of one micro-batch; in training, times the factor that ``balance`` gives its domain."""
        loss: torch.Tensor = super().compute_loss(model, inputs, *args, **kwargs)
        return self._weighing.scale(loss, domain_of(inputs)) if self.model.training else loss

    def _begin_micro_batch(self) -> None:
        """Settles whether this micro-batch's gradient is collected and averaged, before its forward pass.

        Where domains are not kept apart, TRL's own choice stands: averaged in the window's last backward.
        """
        self._collects = self._separates_domains and (self._halves or self._domain_ends())
        if self._separates_domains:
            each = self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
            reduction = Reduction.of(self.model_wrapped)
            self._micro_batch.enter_context(reduction.backward(reduce=self._collects or each))

    @property
    def _separates_domains(self) -> bool:
        """Whether this step's domains need gradients of their own; plain mixing needs them only to be looked at."""
        looks = self._separable and self.state.global_step % self._own["grams_every"] == 0
        return self._always_separates or looks

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
        return self._step % self._sampler.geometry.steps_per_generation

    def _generates(self, micro_step: int) -> bool:
        """Whether ``micro_step`` samples new completions."""
        return micro_step % (self._sampler.geometry.steps_per_generation * self.num_iterations) == 0

    def _end_window(self) -> None:
        assert self._window_loss is not None
        loss, self._window_loss = self._window_loss, None
        losses = self.accelerator.gather(loss.reshape(1))  # ranks must stop together
        if not (finite := losses.isfinite()).all():
            if self._surgeon is not None:
                self._surgeon.reset()
            raise self._diverged(f"the loss is {losses[~finite][0].item()}, so the step was not taken")
        metrics: dict[str, float] = {}
        if self._separates_domains:
            self.last_record = unscaled(self.surgeon.combine(self._weighing.of_gradients), self.accelerator.scaler)
            metrics = surgery_metrics(self.last_record)
        for key, value in (metrics | self._weighing.end()).items():
            self._metrics["train"][key].append(value)
        self._mix.settle(self.state.global_step)

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"Step {self.state.global_step + 1}: {what}. Start a new run, from the last checkpoint as its model if you "
            "like, with a lower learning_rate or a smaller max_grad_norm."
        )

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Ours first: TRL may push the folder once it has written its own files.
        if not all_finite(model, self.accelerator):
            raise self._diverged("weights are no longer numbers, so no checkpoint was written over good ones")
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        buffer = None if self._generates(self._step) else self._buffered_inputs
        # Plain mixing never needs a Surgeon, and works on back ends for which none can be made.
        surgeon = self._surgeon.state_dict() if self._surgeon else self._surgeon_state
        kept = {"rewards": self._rewards.normalizer.state_dict(), "balance": self._weighing.rule.state_dict()}
        kept |= {"redraws": self._redraws.state_dict(), "mix": self._mix.state_dict()}
        state = TrainerState(self._step, surgeon, buffer, **kept)
        save_state(folder, state, self._kept_settings(), self.accelerator.process_index, self.accelerator.num_processes)
        super()._save_checkpoint(model, trial)

    def _kept_settings(self) -> dict[str, Any]:
        return kept_settings(self.args, self._own, self.domain_rows.sizes, self.domain_rows.mixed)

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """``GRPOTrainer.train``; a resumed run continues with the numbers of one that was never interrupted.

        With ``args.run`` the run directory is written, and taken up where resuming is asked for.
        """
        if self._script_run is None:
            return self._train_from(resume_from_checkpoint, *args, **kwargs)
        with self._script_run.recording(self, bool(resume_from_checkpoint)) as checkpoint:
            return self._train_from(checkpoint, *args, **kwargs)

    def _train_from(self, resume_from_checkpoint: str | Path | bool | None, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        checkpoint = find_checkpoint(resume_from_checkpoint, str(self.args.output_dir))
        if checkpoint is not None:
            here = (self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device)
            state = load_state(Path(checkpoint), self._kept_settings(), *here)
            self._step, self._surgeon_state, self._buffered_inputs = state.micro_step, state.surgeon, state.buffer
            self._rewards.normalizer.load_state_dict(state.rewards)
            self._weighing.forget(state.balance)
            self._redraws.load_state_dict(state.redraws)
            self._mix.forget(state.mix)
        return super().train(checkpoint, *args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's model card with the domains, the strategy and the last held-out rewards."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            add_domains(Path(str(self.args.output_dir)) / "README.md", self.strategy, self.shares, self.held_out)

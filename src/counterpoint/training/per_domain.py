"""Settings that a domain has for itself, at work in TRL's trainer: sampling, cutting, log-probabilities, loss, groups.

Micro-batches of training hold one domain, so its loss only needs its own numbers in place. Generation batches and
those of evaluations hold several: there, rows of one kind are sampled and scored apart. All ranks make the same calls,
as sharded models need it: one without rows of a kind takes its first row instead and throws away what comes of it.
"""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from trl import GRPOTrainer

from counterpoint.evaluation.sampling import replaced
from counterpoint.evaluation.stopping import stop_length
from counterpoint.training.batches import DOMAIN_KEY, Buffer, domain_of, total_rewards
from counterpoint.training.domain_settings import DomainSettings, SettingsByDomain, check_per_domain, check_rollouts
from counterpoint.training.groups import advantages, by_size, group_ids
from counterpoint.training.heads import add_temperatures
from counterpoint.training.metrics import equal_rows, teaching_rows


class PerDomain(GRPOTrainer):
    """Part of a trainer on domains; where no domain has settings for itself, every method is TRL's."""

    _settings: SettingsByDomain
    _rows: Sequence[str] | None = None
    """The domain of each row that TRL works on; None where all are of one kind."""
    _stopped: Collection[int] = frozenset()
    """The rows of the last generation that a stop string ended."""
    _temperature: float

    # Before and after TRL's constructor

    def _take_settings(self: Any, args: Any, **others: Any) -> None:
        """Refuses what would not be exact, before a model is loaded; ``others`` are arguments of the trainer."""
        per_domain = self._own["per_domain"]
        self._settings = SettingsByDomain.of(args, per_domain, self.domains)
        self._temperature = args.temperature
        check_per_domain(args, per_domain)
        used = next((name for name, value in others.items() if value is not None), None)
        check_rollouts(per_domain, own_rollouts=used, images=self.domain_rows.pictured is not None)

    def _prepare_heads(self: Any) -> None:
        """Once TRL's constructor is through: heads of other temperatures, for the policy and the reference model."""
        if not self._settings.differ("temperature"):
            return
        policy = self.accelerator.unwrap_model(self.model)
        policy = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
        models: list[tuple[Any, dict[str, Any]]] = [(policy, {"outputs": ("log_probs", "entropy")})]
        if self.ref_model is not None:
            models.append((self.accelerator.unwrap_model(self.ref_model), {}))
        for model, options in models:
            options["cast_lm_head_to_fp32"] = self.args.cast_lm_head_to_fp32
            temperatures = (self.temperature, self._settings.temperatures)
            add_temperatures(model, *temperatures, lambda: self._temperature, **options)

    # Generation

    def _generate_and_score_completions(self: Any, inputs: list[dict[str, Any]]) -> Buffer:
        if not self._settings.any:
            return super()._generate_and_score_completions(inputs)
        with self._working_on([name for name, _ in self._places]):
            return super()._generate_and_score_completions(inputs)

    def _working_on(self, rows: Sequence[str]) -> AbstractContextManager[None]:
        return replaced(self, {"_rows": rows})

    def _generate(self: Any, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)
        if self._settings.differ("stop"):
            self._correct_truncation(generated[1])
        return generated

    def _cut_off(self: Any, completion_ids: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each completion of the last generation was cut off: nothing of its own ended it."""
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        return [ids[-1] not in ends and i not in self._stopped for i, ids in enumerate(completion_ids)]

    def _correct_truncation(self: Any, completion_ids: Sequence[Sequence[int]]) -> None:
        """TRL's metrics of completions that ended by themselves, with those that a stop string ended."""
        both = zip(map(len, completion_ids), self._cut_off(completion_ids), strict=True)
        here = torch.tensor([*both], device=self.accelerator.device)
        lengths, truncated = self.accelerator.gather(here).unbind(dim=1)
        ended = lengths[truncated == 0].float()
        ended = ended if len(ended) else torch.zeros(1)
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["completions/clipped_ratio"][-1] = truncated.float().mean().item()
        for name, value in (("mean", ended.mean()), ("min", ended.min()), ("max", ended.max())):
            metrics[f"completions/{name}_terminated_length"][-1] = value.item()

    def _generate_single_turn(
        self: Any, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, *args: Any, **kwargs: Any
    ) -> Any:
        generate = super()._generate_single_turn
        if self._rows is None or not self._settings.generates:
            return generate(prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs)
        kinds = self._kinds([self._settings[name].sampling for name in self._rows], self._settings.samplings)
        if len(kinds) == 1:
            with self._sampling(next(iter(kinds))):
                ids, logprobs = generate(prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs)
            return self._cut(ids, logprobs)
        found: list[Any] = [None] * len(prompt_ids)
        for sampling, (rows, _) in kinds.items():
            with self._sampling(sampling):
                chosen = [prompt_ids[i] for i in rows or [0]]
                ids, logprobs = generate(chosen, None, {}, num_generations, *args, **kwargs)
            for i, own, scores in zip(rows, ids, logprobs or [None] * len(ids), strict=False):
                found[i] = own, scores
        ids, logprobs = map(list, zip(*found, strict=True))
        return self._cut(ids, None if logprobs[0] is None else logprobs)

    def _kinds(self: Any, kind_B: Sequence[Any], all_kinds: Sequence[Any]) -> dict[Any, tuple[list[int], int]]:
        """The rows of every kind that any rank has, in one order on all ranks, and the most that one rank has."""
        rows: dict[Any, list[int]] = {kind: [] for kind in all_kinds}
        for i, kind in enumerate(kind_B):
            rows[kind].append(i)
        counts = torch.tensor([[*map(len, rows.values())]], device=self.accelerator.device)
        most = self.accelerator.gather(counts).amax(dim=0).tolist()
        return {kind: (own, largest) for (kind, own), largest in zip(rows.items(), most, strict=True) if largest}

    @contextmanager
    def _sampling(self: Any, sampling: tuple[float, float]) -> Iterator[None]:
        """TRL's engine with other settings: those of one kind of rows, and the longest completion of any of them."""
        longest = self._settings.longest(self._rows, sampling)
        changed: dict[str, Any] = dict(zip(("temperature", "top_p"), sampling, strict=True))
        if sampling == self._settings.whole.sampling:
            changed = {}  # what generation_kwargs say stands
        if self.use_vllm:
            with replaced(self.vllm_generation, changed | {"max_completion_length": longest}):
                yield
            return
        most = [n for n in (longest, self.generation_kwargs.get("max_new_tokens")) if n is not None]
        changed |= {"max_new_tokens": min(most)} if most else {}
        config = copy.deepcopy(self.generation_config)
        config.update(**changed)
        with replaced(self, {"generation_config": config, "generation_kwargs": self.generation_kwargs | changed}):
            yield

    def _cut(self: Any, completion_ids: list[list[int]], logprobs: list[Any] | None) -> tuple[Any, Any]:
        """The completions as far as their domains' stop strings and longest completions let them go."""
        kept = [
            cut_length(self._tokenizer, ids, self._settings[name])
            for ids, name in zip(completion_ids, self._rows, strict=True)
        ]
        self._stopped = {i for i, (_, stopped) in enumerate(kept) if stopped}
        completion_ids = [ids[:length] for ids, (length, _) in zip(completion_ids, kept, strict=True)]
        if logprobs is not None:
            logprobs = [scores[:length] for scores, (length, _) in zip(logprobs, kept, strict=True)]
        return completion_ids, logprobs

    # Log-probabilities and the loss

    def _get_per_token_logps_and_entropies(
        self: Any, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        score = super()._get_per_token_logps_and_entropies
        if self._rows is None or not self._settings.differ("temperature"):
            return score(model, input_ids, attention_mask, *args, **kwargs)
        parts, order, losses = [], [], []
        kinds = self._kinds([self._settings[name].temperature for name in self._rows], self._settings.temperatures)
        for temperature, (rows, most) in kinds.items():  # as many chunks on all ranks
            index = torch.tensor([*rows, *[0] * (most - len(rows))], device=input_ids.device)
            with replaced(self, {"_temperature": temperature}):
                logps, entropies, loss = score(model, input_ids[index], attention_mask[index], *args, **kwargs)
            parts.append((logps[: len(rows)], None if entropies is None else entropies[: len(rows)]))
            losses += [loss] * bool(rows)
            order += rows
        places = torch.tensor(order, device=input_ids.device).argsort()
        logps, entropies = (None if of[0] is None else torch.cat(of)[places] for of in zip(*parts, strict=True))
        return logps, entropies, None if losses[0] is None else torch.stack(losses).mean()

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """TRL's loss of one micro-batch with the settings of its domain; that of an evaluation, whose rows are of
        several, has the whole training's ``beta`` and clip ranges."""
        compute = super().compute_loss
        if not self._settings.any:
            return compute(model, inputs, *args, **kwargs)
        if not self.model.training:
            names = (*self.domains, "")  # the id -1 is none
            with self._working_on([names[i] for i in inputs[DOMAIN_KEY].tolist()]):
                return compute(model, inputs, *args, **kwargs)
        own = self._settings[self.domains[domain_of(inputs)]]
        numbers = {"beta": own.beta, "epsilon_low": own.epsilon, "epsilon_high": own.epsilon_high}
        with replaced(self, numbers | {"_temperature": own.temperature}):
            return compute(model, inputs, *args, **kwargs)

    # Groups of completions of one prompt

    def _sizes(self: Any, domain_B: torch.Tensor) -> torch.Tensor | None:
        """The size of each row's group ``[B]``; None where all groups are of one size."""
        if not self.model.training or not self._settings.differ("num_generations"):
            return None
        sizes = [self._settings[name].num_generations for name in self.domains]
        return torch.tensor(sizes, device=domain_B.device)[domain_B]

    def _prompt_ids(self: Any, domain_B: torch.Tensor) -> torch.Tensor:
        """A number for each row's prompt ``[B]``."""
        size_B = self._sizes(domain_B)
        if size_B is None:
            return torch.arange(len(domain_B), device=domain_B.device) // self.num_generations
        return group_ids(size_B)

    def _teaching(self: Any, all_domain_B: torch.Tensor) -> torch.Tensor:
        """True ``[B]``, over all ranks, where completions of the row's prompt differ in reward."""
        total_B, size_B = total_rewards(self._rewards_BF, self.reward_weights), self._sizes(all_domain_B)
        if size_B is None:
            return teaching_rows(total_B, self.num_generations)
        return by_size(teaching_rows, total_B, size_B)

    def _group_size(self: Any) -> int | Mapping[str, int]:
        """Completions of one prompt in the batch at hand, or those of every domain."""
        if not self.model.training:
            return self.num_generations_eval
        if not self._settings.differ("num_generations"):
            return self.num_generations
        return {name: own.num_generations for name, own in self._settings.of_domain.items()}

    def _regroup_advantages(self: Any, output: Buffer, all_domain_B: torch.Tensor) -> None:
        """Advantages inside each domain's own groups, where TRL has taken all groups for equally large."""
        size_B = self._sizes(all_domain_B)
        if size_B is None:
            return
        total_B, scaled = total_rewards(self._rewards_BF, self.reward_weights), self.scale_rewards != "none"
        all_B = by_size(lambda total, size: advantages(total, size, scaled=scaled), total_B, size_B)
        output["advantages"] = self._own_rows(all_B)
        self._metrics["train"]["frac_reward_zero_std"][-1] = by_size(equal_rows, total_B, size_B).float().mean().item()
        logged = self._logs["advantages"]
        for _ in range(min(len(all_B), len(logged))):
            logged.pop()
        logged.extend(all_B.tolist())


def cut_length(tokenizer: Any, ids: Sequence[int], settings: DomainSettings) -> tuple[int, bool]:
    """How many ids of a completion its domain keeps, and whether a stop string ended it."""
    kept = ids[: settings.max_completion_length]
    length = stop_length(tokenizer, kept, settings.stop)
    return (len(kept), False) if length is None else (length, True)

"""The generation side of ``DomainGRPOTrainer``: completions, rewards, advantages and metrics of several domains."""

from collections.abc import Sequence
from typing import Any

import torch
from trl import GRPOTrainer

from counterpoint.errors import DivergedError
from counterpoint.training.advantages import check_size, rescale_per_domain, total_rewards
from counterpoint.training.dataset import DomainRows
from counterpoint.training.metrics import batch_metrics
from counterpoint.training.regroup import DOMAIN_KEY, PROMPT_KEY, Buffer
from counterpoint.training.shared_errors import SharedErrors


class DomainGeneration(GRPOTrainer):
    """Abstract: TRL's trainer whose generated batches know their domains. ``DomainGRPOTrainer`` sets what it reads."""

    domains: Sequence[str]
    domain_rows: DomainRows
    eval_rows: DomainRows | None
    model: Any
    num_generations: int
    _errors: SharedErrors

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

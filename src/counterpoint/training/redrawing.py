"""Dynamic sampling that keeps shares: prompts that teach nothing are replaced, each inside its own domain.

DAPO (arXiv 2503.14476) samples on until a batch is full of prompts whose completions differ in reward, whatever domain
they are of. Here the place of a silent prompt is filled by another prompt of the same domain, and of the same source
where the domain has several; what is still silent after the last round stays.

Legend: B rows of this rank's generation batch, P prompts of it, W ranks, K kinds of rows (a domain, or its source).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from counterpoint.domains.sampler import SOURCE_COLUMN, DomainStream, MixedRows
from counterpoint.errors import UnsupportedError
from counterpoint.evaluation.sampling import replaced
from counterpoint.training.batches import (
    DOMAIN_KEY,
    PROMPT_KEY,
    SIGNAL_KEY,
    Buffer,
    DomainRows,
    merge_rows,
    scored_tokens,
)

Place = tuple[str, int]
"""A domain and the number of a row of it."""


class Redraws:
    """Draws prompts in place of silent ones, in an order of its own that goes on from round to round.

    Args:
        rounds: most rounds of extra generation for one batch; 0 for none at all.
        args: the settings of the training.
        rows: the rows of all domains.

    Raises:
        UnsupportedError: a setting with which a batch of two generations would not be exact.
    """

    def __init__(self, rounds: int, args: Any, rows: DomainRows) -> None:
        self.rounds, self.num_generations = rounds, args.num_generations
        self._domains = rows.rows
        self.busy = False
        """Whether a batch is being filled at the moment."""
        self.drawn: dict[str, int] = {}
        """Kind of row -> prompts drawn so far, on all ranks."""
        check_dynamic_sampling(rounds, args)
        if rounds:
            if rows.pictured:
                raise UnsupportedError(
                    f"dynamic_sampling is for text; the rows of {rows.pictured!r} have images, whose batches cannot be "
                    "joined. Use dynamic_sampling=0."
                )
            self._order = {kind: _Order(f"{kind}\nreplaced", numbers, args.seed) for kind, numbers in _kinds(rows)}

    def fill(
        self,
        batch: Buffer,
        places: list[Place],
        sample: Callable[[list[Place]], Buffer],
        pad_token_id: int,
        trainer: Any,
    ) -> Buffer:
        """``batch`` with silent prompts replaced as far as that succeeds; TRL's metrics stay those of the first draw.

        All ranks call it together. Each replaces its own prompts; all generate as many completions as the rank with the
        most silent prompts needs, as sharded models want it.

        Args:
            batch: the rows of this rank, whole groups one after another.
            places: the row of each, changed where it is replaced.
            sample: completions of the rows at some places, as such a batch.
            trainer: whose metrics tell what was replaced, and what that cost.
        """
        metrics, start = trainer._metrics["train"], time.perf_counter()
        counts = {key: len(values) for key, values in metrics.items()}
        with replaced(self, {"busy": True}):
            batch, found = self._replace(batch, places, sample, pad_token_id, trainer.accelerator)
        for key in list(metrics):
            if key != "num_tokens":  # a count of all tokens so far
                del metrics[key][counts.get(key, 0) :]
        for key, value in (found | {"extra_seconds": time.perf_counter() - start}).items():
            metrics[key].append(value)
        return batch

    def _replace(
        self,
        batch: Buffer,
        places: list[Place],
        sample: Callable[[list[Place]], Buffer],
        pad_token_id: int,
        accelerator: Any,
    ) -> tuple[Buffer, dict[str, float]]:
        group, extra = self.num_generations, 0
        num_prompts = len(places) // group
        taken = torch.zeros(len(self._domains), device=batch[DOMAIN_KEY].device)
        for _ in range(self.rounds):
            silent = (~batch[SIGNAL_KEY]).view(-1, group)[:, 0].nonzero().squeeze(1).tolist()
            chosen, most = self._draw([places[prompt * group] for prompt in silent], accelerator)
            if most == 0:
                break
            chosen += [places[0]] * (most - len(chosen))  # other ranks need more
            found = sample([place for place in chosen for _ in range(group)])
            extra += most
            teaches = found[SIGNAL_KEY].view(-1, group)[:, 0].tolist()
            index = list(range(len(places)))
            for number, prompt in enumerate(silent):
                if teaches[number]:
                    rows = slice(prompt * group, (prompt + 1) * group)
                    places[rows] = [chosen[number]] * group
                    index[rows] = range(len(places) + number * group, len(places) + (number + 1) * group)
                    taken[batch[DOMAIN_KEY][prompt * group]] += 1
            prompt_ids = batch[PROMPT_KEY]
            batch = merge_rows(batch, found, index, pad_token_id) | {PROMPT_KEY: prompt_ids}
        if extra:
            batch["num_items_in_batch"] = accelerator.gather(scored_tokens(batch).sum()).sum()
        return batch, self._metrics(batch, taken, extra, num_prompts, accelerator)

    def _draw(self, wanted: Sequence[Place], accelerator: Any) -> tuple[list[Place], int]:
        """A new place for each of ``wanted``, of its kind; and the most that any rank wants."""
        kinds = [self._kind(place) for place in wanted]
        count_K = torch.tensor([kinds.count(kind) for kind in self._order], device=accelerator.device)
        count_WK = accelerator.gather(count_K[None])
        before_K = count_WK[: accelerator.process_index].sum(dim=0)
        start = {
            kind: self.drawn.get(kind, 0) + int(before) for kind, before in zip(self._order, before_K, strict=True)
        }
        chosen = []
        for (domain, _), kind in zip(wanted, kinds, strict=True):
            chosen.append((domain, self._order[kind][start[kind]]))
            start[kind] += 1
        for kind, total in zip(self._order, count_WK.sum(dim=0).tolist(), strict=True):
            self.drawn[kind] = self.drawn.get(kind, 0) + total
        return chosen, int(count_WK.sum(dim=1).max())

    def _kind(self, place: Place) -> str:
        domain, number = place
        rows = self._domains[domain]
        return f"{domain}\n{rows[number][SOURCE_COLUMN]}" if isinstance(rows, MixedRows) else domain

    def _metrics(
        self, batch: Buffer, taken: torch.Tensor, extra: int, num_prompts: int, accelerator: Any
    ) -> dict[str, float]:
        """Share of each domain's prompts that were replaced, and completions generated for it for each of the batch."""
        held = torch.bincount(batch[DOMAIN_KEY], minlength=len(taken)) / self.num_generations
        taken, held = accelerator.reduce(torch.stack([taken, held]), reduction="sum")
        shares = zip(self._domains, taken.tolist(), held.tolist(), strict=True)
        return {f"replaced/{name}": part / whole for name, part, whole in shares if whole} | {
            "extra_completions": extra / num_prompts
        }

    def state_dict(self) -> dict[str, int]:
        """Plain data for a checkpoint."""
        return dict(self.drawn)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from ``state_dict()``; from the start where that is empty."""
        self.drawn = dict(state)


class _Order:
    """An endless order of some rows of a domain."""

    def __init__(self, name: str, numbers: Sequence[int], seed: int) -> None:
        self._numbers, self._stream = numbers, DomainStream(len(numbers), seed, name)

    def __getitem__(self, position: int) -> int:
        return self._numbers[self._stream[position]]


def _kinds(rows: DomainRows) -> list[tuple[str, Sequence[int]]]:
    found: list[tuple[str, Sequence[int]]] = []
    for domain, own in rows.rows.items():
        if isinstance(own, MixedRows):
            found += [(f"{domain}\n{source}", numbers) for source, numbers in own.by_source().items()]
        else:
            found.append((domain, range(len(own))))
    return found


def check_dynamic_sampling(rounds: int, args: Any) -> None:
    """Refuses settings with which a batch of several generations would not be exact.

    Raises:
        UnsupportedError: naming the setting.
    """
    if not rounds:
        return
    if args.scale_rewards == "batch" or args.multi_objective_aggregation == "normalize_then_sum":
        raise UnsupportedError(
            "dynamic_sampling fills a batch from several generations, and scale_rewards='batch' and "
            "multi_objective_aggregation='normalize_then_sum' divide by one deviation of a whole batch. Use "
            "scale_rewards='group' or 'none' and 'sum_then_normalize', or dynamic_sampling=0."
        )
    per_rank = args.per_device_train_batch_size * args.steps_per_generation
    if per_rank % args.num_generations:
        raise UnsupportedError(
            f"dynamic_sampling replaces whole groups of num_generations={args.num_generations} completions, and each "
            f"device generates {per_rank} (per_device_train_batch_size={args.per_device_train_batch_size} x "
            f"steps_per_generation={args.steps_per_generation}), so that groups lie on two. Make that a multiple of "
            f"{args.num_generations}."
        )

"""``evaluate`` and ``predict`` of a trainer whose rows stand behind an index."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from datasets import Dataset

from counterpoint.evaluation.sampling import replaced
from counterpoint.training.batches import DomainRows, held_out_rows


class OtherRows:
    """For a ``GRPOTrainer`` over the index of ``DomainRows``: evaluation takes whatever its constructor takes."""

    domains: Sequence[str]
    eval_rows: DomainRows | None
    held_out: dict[str, float]

    def _held_out_rows(self: Any, data: Any, where: str) -> DomainRows:
        return held_out_rows(
            data, where, self.domains, any_domain=not self._rewards.by_domain, needs_prompt=self._needs_prompt
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """``GRPOTrainer.evaluate``; another dataset may be anything that the constructor takes."""
        with self._other_rows(eval_dataset, "eval_dataset") as index:
            metrics: dict[str, float] = super().evaluate(index, ignore_keys, metric_key_prefix)  # type: ignore[misc]
        self.held_out |= {name: metrics[key] for name in self.domains if (key := f"eval_reward/{name}") in metrics}
        return metrics

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """``GRPOTrainer.predict`` on whatever the constructor takes as an ``eval_dataset``."""
        with self._other_rows(test_dataset, "test_dataset") as index:
            return super().predict(index, *args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _other_rows(self, data: Any, where: str) -> Iterator[Dataset | None]:
        """Full rows of ``data`` while TRL iterates the index that this gives."""
        rows = None if data is None else self._held_out_rows(data, where)
        with replaced(self, {} if rows is None else {"eval_rows": rows}):
            yield None if rows is None else rows.index

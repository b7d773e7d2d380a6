"""Rows that stand for several: one row of each order of the domains."""

import itertools
from collections.abc import Mapping, Sequence

from counterpoint.study.schema import MAX_ROWS, Row, TrainRow

_MAX_ORDERED = 6  # 720 orders


def too_many(rows: Mapping[str, Row], domains: Sequence[str]) -> str | None:
    """Why the rows cannot be expanded: there would be too many, counted before any is made."""
    if any(isinstance(row, TrainRow) and row.orders == "all" for row in rows.values()) and len(domains) > _MAX_ORDERED:
        return (
            f"`orders: all` of {len(domains)} domains stands for {len(domains)}! rows. Use it with at most "
            f"{_MAX_ORDERED} domains, or list some orders."
        )
    count = sum(len(orders) if (orders := _orders(row, domains)) is not None else 1 for row in rows.values())
    return f"{count} rows, at most {MAX_ROWS} are compared. Leave some out." if count > MAX_ROWS else None


def _orders(row: Row, domains: Sequence[str]) -> Sequence[Sequence[str]] | None:
    if not isinstance(row, TrainRow) or row.orders is None:
        return None
    return list(itertools.permutations(domains)) if row.orders == "all" else row.orders


def expanded_rows(rows: Mapping[str, Row], domains: Sequence[str]) -> dict[str, Row]:
    """``rows`` with every row that has ``orders`` replaced by one per order, named ``NAME-first-second-...``."""
    expanded: dict[str, Row] = {}
    for name, row in rows.items():
        orders = _orders(row, domains)
        if orders is None or not isinstance(row, TrainRow):
            expanded[name] = row
            continue
        for order in orders:
            strategy = {"name": "sequential", "order": list(order)}
            if isinstance(row.strategy, dict):
                strategy = {**row.strategy, **strategy}
            expanded["-".join([name, *order])] = row.model_copy(update={"strategy": strategy, "orders": None})
    return expanded

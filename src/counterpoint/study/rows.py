"""Rows that stand for several: one row of each order of the domains."""

import itertools
from collections.abc import Mapping, Sequence

from counterpoint.study.schema import Row, TrainRow


def expanded_rows(rows: Mapping[str, Row], domains: Sequence[str]) -> dict[str, Row]:
    """``rows`` with every row that has ``orders`` replaced by one per order, named ``NAME-first-second-...``."""
    expanded: dict[str, Row] = {}
    for name, row in rows.items():
        if not isinstance(row, TrainRow) or row.orders is None:
            expanded[name] = row
            continue
        orders = itertools.permutations(domains) if row.orders == "all" else row.orders
        for order in orders:
            strategy = {"name": "sequential", "order": list(order)}
            if isinstance(row.strategy, dict):
                strategy = {**row.strategy, **strategy}
            expanded["-".join([name, *order])] = row.model_copy(update={"strategy": strategy, "orders": None})
    return expanded

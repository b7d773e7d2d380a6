"""What a reader must know beside a study's table, in sentences."""

from collections.abc import Iterator, Sequence

from counterpoint.study.load import Study
from counterpoint.study.results import RowResult
from counterpoint.study.schema import BaseRow, ExpertsRow
from counterpoint.study.statistics import LEVEL, smallest_sign_flip_p


def notes_on(study: Study, rows: Sequence[RowResult]) -> Iterator[str]:
    """Sentences on how the numbers were made and what they cannot say."""
    reference = next(row for row in rows if row.name == study.config.reference)
    num_seeds = len(reference.seeds_done)
    num_compared = sum(len(row.difference or ()) for row in rows)
    yield (
        "Scores are mean rewards of sampled answers to held-out prompts, the same ones for every row and seed; "
        "intervals are Student's over seeds."
    )
    if num_compared:
        yield (
            f"Differences from {reference.name} are paired by seed. A verdict needs a p below {LEVEL} by the paired t "
            f"test after Holm's correction for all {num_compared} comparisons of this study."
        )
        yield (
            f"The sign-flip test assumes less and decides nothing here: with {num_seeds} seeds its p cannot be below "
            f"{smallest_sign_flip_p(num_seeds):.2g}."
        )
    elif num_seeds < 2:
        yield f"Nothing is compared yet: {reference.name} needs at least two seeds that are done."
    if any(isinstance(row, BaseRow) for row in study.rows.values()):
        yield "The base is evaluated once; its intervals are over prompts."
    if any(isinstance(row, ExpertsRow) for row in study.rows.values()):
        yield "A row of experts is not one model: each domain is answered by the expert trained on it alone."
    missing = sum(len(study.seeds(row.name)) > len(row.seeds_done) and row.kind != "base" for row in rows)
    if missing:
        yield f"{missing} of {len(rows)} rows do not have all their seeds yet."

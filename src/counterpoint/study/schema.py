"""What a study file may hold: the study itself, one section per kind of row, and the planned contrasts."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from counterpoint.config.section import LARGEST_SEED, MAX_NAME, Section

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
RowName = Annotated[str, Field(pattern=_NAME, max_length=MAX_NAME)]
MAX_SEEDS = 1000
MAX_ROWS = 1000
MAX_CONTRASTS = 10
AVERAGE, WORST, STARVED = "average", "worst", "starved"
"""Measures beside the domains: the mean over them, the lowest of them, and whether that is starved, of each seed."""


def _expand_seeds(value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value > MAX_SEEDS:
        raise ValueError(f"should be at most {MAX_SEEDS} seeds")
    return list(range(value))


Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Seeds = Annotated[
    tuple[Seed, ...],
    Field(min_length=1, max_length=MAX_SEEDS),
    BeforeValidator(_expand_seeds, json_schema_input_type=int | list[Seed]),
]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Settings = dict[str, Any]


class Row(Section):
    """What every row has."""

    description: str = Field(default="", description="A few words for the tables.")
    seeds: Seeds | None = Field(
        default=None, description="Seeds of this row alone: a number or a list.", examples=[3, [0, 1]]
    )


class TrainRow(Row):
    """One run per seed."""

    kind: Literal["train"] = "train"
    strategy: str | dict[str, Any] | None = Field(
        default=None, description="As in a configuration; null keeps that of the base configuration.", examples=["mgs"]
    )
    orders: Literal["all"] | list[list[str]] | None = Field(
        default=None,
        description="`sequential` only: makes one row of each order of the domains, `all` or a list of orders.",
        examples=["all", [["math", "code"], ["code", "math"]]],
    )
    set: Settings = Field(
        default_factory=dict,
        description="Keys of the configuration and their values in this row.",
        examples=[{"domains.math.share": 2}],
    )


class ExpertsRow(Row):
    """One run per domain and seed, each on its domain alone; a domain's score is its own expert's."""

    kind: Literal["experts"] = "experts"
    steps: int | None = Field(
        default=None,
        gt=0,
        description="Steps of each expert; null divides the budget, so that all experts together cost one run.",
    )
    set: Settings = Field(default_factory=dict, description="As in a row of kind `train`.")


class BaseRow(Row):
    """The untouched model, evaluated once."""

    kind: Literal["base"] = "base"


class GivenRow(Row):
    """Checkpoints that are there already, trained by whatever program; they are evaluated only."""

    kind: Literal["given"] = "given"
    path: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1, max_length=MAX_SEEDS)] = Field(
        description="One checkpoint, which is shown and not compared; or a list with one per seed.",
        examples=[["theirs/seed-0", "theirs/seed-1"]],
    )


class MergeRow(Row):
    """The experts of each seed merged into one model."""

    kind: Literal["merge"] = "merge"
    of: RowName = Field(description="A row of kind `experts`.", examples=["experts"])
    method: Literal["average", "task_arithmetic", "ties"] = Field(description="How their weights are merged.")
    scale: Scale | list[Scale] | None = Field(
        default=None,
        description="Factor of the merged edit; of several the best on training prompts; null means the method's own.",
        examples=[0.5, [0.3, 0.5, 1]],
    )
    density: float | None = Field(
        default=None, gt=0, le=1, description="`ties` only: share of each edit's weights that is kept."
    )


class RefreshRow(Row):
    """Short training on one domain after the run of another row."""

    kind: Literal["refresh"] = "refresh"
    of: RowName = Field(description="A row of kind `train`.", examples=["sequential"])
    domain: str = Field(description="The domain that is refreshed.", examples=["math"])
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of `counterpoint.recovery.RefreshOptions`.",
        examples=[{"steps": 10}],
    )


class RollbackRow(Row):
    """A part of the later stages' edit undone without training, after the run of a row that is sequential."""

    kind: Literal["rollback"] = "rollback"
    of: RowName = Field(description="A row of kind `train` whose strategy is `sequential`.", examples=["sequential"])
    domain: str = Field(description="The domain that is to come back.", examples=["math"])
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of `counterpoint.recovery.RollbackOptions`.",
        examples=[{"budgets": [0.01, 0.1]}],
    )


KINDS: dict[str, type[Row]] = {
    "train": TrainRow,
    "experts": ExpertsRow,
    "base": BaseRow,
    "given": GivenRow,
    "merge": MergeRow,
    "refresh": RefreshRow,
    "rollback": RollbackRow,
}
"""Kind of a row -> what it may hold."""


class Contrast(Section):
    """A comparison with the reference that is planned before the study runs, and that alone is decided."""

    row: RowName = Field(description="The row that is compared with the reference.", examples=["mgs"])
    measure: str = Field(
        default=AVERAGE,
        description="`average`, `worst` (the lowest domain), `starved` (the share of such seeds), or a domain.",
    )


class StudyConfig(Section):
    """A study file. Make it with ``load_study``, which checks the rows too."""

    name: str = Field(
        pattern=_NAME, max_length=MAX_NAME, description="Name of the study and of its folder.", examples=["pocket"]
    )
    config: Annotated[str, Field(min_length=1)] | dict[str, Any] = Field(
        description="The base configuration: its path, beside this file or below the current folder, or its keys.",
        examples=["pocket-base.yaml"],
    )
    seeds: Seeds = Field(default=(0, 1, 2, 3, 4), description="Seeds of every row: a number or a list.")
    reference: RowName = Field(default="mixed", description="The row that every other one is compared with.")
    contrasts: Annotated[list[Contrast], Field(max_length=MAX_CONTRASTS)] | None = Field(
        default=None,
        description="The few planned comparisons with the reference; null plans the average of every other row where "
        "there are at most three, and nothing where there are more.",
        examples=[[{"row": "mgs", "measure": "average"}]],
    )
    worth: float = Field(
        default=0.02,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="The smallest difference worth seeing, in the unit of the scores: the power is stated for it.",
    )
    starved: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="A seed whose lowest domain ends below this score is starved, and is counted; null counts none. "
        "Set it before the first run.",
        examples=[0.5],
    )
    parallel: int = Field(default=1, gt=0, description="Runs at a time; they share the processor's cores evenly.")
    rows: dict[RowName, Any] = Field(
        min_length=1,
        description="Name -> row. A plain strategy stands for a row of kind `train`; `base` and `experts` for those.",
        examples=[{"base": "base", "mixed": "mixed", "mgs": "mgs"}],
    )


def expand_row(value: Any) -> Any:
    """The long form of a row's shorthand: a strategy's name, or ``base`` or ``experts``."""
    if not isinstance(value, str):
        return value
    return {"kind": value} if value in ("base", "experts") else {"strategy": value}

"""What a refresh leaves: options, and the scores of every look."""

import math
from dataclasses import dataclass, field

from counterpoint.errors import CounterpointError
from counterpoint.stats import Estimate


@dataclass(frozen=True)
class RefreshOptions:
    """How a refresh is done.

    ``steps`` is the limit and ``every`` the steps between looks at all domains. ``learning_rate`` is that of the
    configuration where it is None. ``replay`` is the share of every step's prompts that comes from the other domains;
    ``protect`` names domains whose gradients the refresh gives way to, which needs replay (0.5 where none is given).
    ``strategy`` combines the gradients where there is replay: ``mgs`` with protected domains, else ``mixed``.
    ``seed`` is the configuration's plus one where it is None, so that prompts come in another order than in the
    domain's own stage. ``former`` is the score to reach, where no checkpoint shows it.
    """

    steps: int = 40
    every: int = 5
    learning_rate: float | None = None
    protect: tuple[str, ...] = ()
    replay: float | None = None
    strategy: str | None = None
    seed: int | None = None
    former: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "every"):
            if getattr(self, name) < 1:
                raise CounterpointError(f"{name} must be at least 1, found {getattr(self, name)}.")
        for name in ("learning_rate", "former"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise CounterpointError(f"{name} must be a finite number, found {value}.")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise CounterpointError(f"learning_rate must be above 0, found {self.learning_rate}.")
        if self.replay is not None and not 0 <= self.replay < 1:
            raise CounterpointError(
                f"replay is the share of prompts from the other domains: at least 0 and below 1, found {self.replay}."
            )
        if self.strategy is not None and not self.share_of_others:
            raise CounterpointError(
                f"strategy={self.strategy!r} combines gradients of several domains, and a refresh without replay has "
                "one. Leave the strategy out, or set replay (--replay 0.25)."
            )

    @property
    def share_of_others(self) -> float:
        """The share of prompts from other domains: protected domains need some, or they have no gradient."""
        if self.protect and not self.replay:
            return DEFAULT_REPLAY
        return self.replay or 0.0


DEFAULT_REPLAY = 0.5
"""Share of the other domains where some are protected and no share was given."""


@dataclass(frozen=True)
class Look:
    """One evaluation of all domains, ``step`` steps after the start."""

    step: int
    scores: dict[str, Estimate]


@dataclass(frozen=True)
class Refresh:
    """A refresh of ``domain`` from ``model``.

    ``stopped`` is ``recovered``, ``harmed`` (then ``harmed`` names the other domain), ``limit``, ``nothing`` (the
    domain was not damaged) or ``interrupted``. ``changes`` are end minus start, paired by prompt; all intervals are
    95 %.
    """

    model: str
    reference: str | None
    domain: str
    run: str
    checkpoint: str | None
    options: RefreshOptions
    stopped: str
    harmed: str | None
    steps: int
    former: Estimate
    start: dict[str, Estimate]
    evaluations: tuple[Look, ...]
    changes: dict[str, Estimate]
    verdict: str
    seconds: float
    notes: tuple[str, ...] = field(default=())

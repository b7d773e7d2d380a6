"""The mix at every step, that is shares and weights of the domains: as a schedule says, or as a curriculum settles it.

The loader is one batch ahead of training, so when a step ends the prompts of the next generation are drawn. What a
curriculum says after step s therefore holds from step s + 2 on, whatever the loader does: from the history alone.
"""

import copy
import math
import sys
from collections.abc import Mapping
from numbers import Real
from typing import Any

from trl import GRPOConfig

from counterpoint.config.schedule import ScheduleEntry, name_problems, read_changes
from counterpoint.domains.sampler import QuotaSampler
from counterpoint.errors import ConfigError, CounterpointError, RewardError, UnsupportedError, nearest, shown
from counterpoint.launch import Launch
from counterpoint.rewards._registry import load_object, make_importable
from counterpoint.rewards.values import Blame
from counterpoint.surgery import Strategy
from counterpoint.training.config import CurriculumFunction, CurriculumSpec, check_halves, plain_curriculum
from counterpoint.training.weighing import Weighing

History = list[dict[str, Any]]
"""One record for every generation: ``step`` (optimizer steps before it), ``reward`` (domain -> mean) and, once domains
were evaluated, ``held_out`` (domain -> newest mean)."""

_AHEAD = 2  # steps from the end of the one after which a curriculum is asked to the first that it can change
_KEYS = ("shares", "weights")


def load_curriculum(spec: CurriculumSpec, args: GRPOConfig) -> CurriculumFunction:
    """The function of a curriculum; its module is found as that of a reward of one's own.

    Raises:
        ConfigError: there is none.
        UnsupportedError: prompts are drawn so far ahead that it could not change them.
    """
    if args.dataloader_num_workers:
        raise UnsupportedError(
            f"dataloader_num_workers={args.dataloader_num_workers}: workers draw prompts several generations ahead, "
            "before a curriculum has settled them. Use dataloader_num_workers=0; there is nothing to load but numbers."
        )
    long = dict(spec) if isinstance(spec, Mapping) else {"function": spec}
    found = long["function"]
    if isinstance(found, str):
        if (folder := long.get("folder")) is not None:
            make_importable(str(folder))
        try:
            found = load_object(f"The curriculum {found!r}", found)
        except RewardError as error:
            raise ConfigError(str(error)) from error
    if not callable(found):
        raise ConfigError(f"The curriculum {long['function']!r} is {type(found).__name__}. Give a function.")
    function: CurriculumFunction = found
    return function


class Mix:
    """The mix of one training.

    Args:
        args, own: the settings, and what ``own_settings`` gives of them.
        shares: at the start.
        sampler: draws the prompts; the schedule's shares are its own already.
        strategy, weighing: what may not go with a change.
        held_out: the newest held-out means, which others keep up to date.

    Raises:
        ConfigError: a schedule or curriculum that cannot be used.
        UnsupportedError: weights with a setting under which they would not be exact.
    """

    def __init__(
        self,
        args: GRPOConfig,
        own: Mapping[str, Any],
        shares: Mapping[str, float],
        sampler: QuotaSampler,
        strategy: Strategy,
        weighing: Weighing,
        held_out: dict[str, float],
    ) -> None:
        self._start, self._sampler, self._held_out = dict(shares), sampler, held_out
        self._strategy, self._weighing = strategy, weighing
        self._schedule = read_changes(own["schedule"], None, sampler.domains).schedule
        self._function: CurriculumFunction | None = None
        if (spec := own["curriculum"]) is not None:
            plain = plain_curriculum(spec)
            assert plain is not None
            self._name, self._every = plain["function"], plain["every"]
            self._function = load_curriculum(spec, args)
        for entry in self._schedule:
            self._check(entry)
        self.forget()

    def forget(self, state: Mapping[str, Any] | None = None) -> None:
        """Makes ready for the first step, or to go on from ``state_dict()``."""
        self.changes: list[ScheduleEntry] = list(self._schedule)
        """What changes the mix of the start, in the order of steps."""
        self.history: History = []
        if self._function is None:
            return
        self._sampler.quotas.forget()
        if state:
            self.history = [dict(record) for record in state["history"]]
            self._held_out.update(state["held_out"])
            for change in state["changes"]:
                self._add(ScheduleEntry(**change))

    def state_dict(self) -> dict[str, Any]:
        """What a curriculum has seen and said, of plain Python objects; nothing where there is none."""
        if self._function is None:
            return {}
        changes = [entry.model_dump(exclude_none=True) for entry in self.changes]
        return {"history": self.history, "held_out": _known(self._held_out), "changes": changes}

    def weights(self, step: int) -> Mapping[str, float]:
        """The factors on the domains' weights in the step that has ``step`` before it; 1 where there is none."""
        return self._newest("weights", step, {})

    def shares(self, step: int) -> Mapping[str, float]:
        """The shares of generations from that step on."""
        return self._newest("shares", step, self._start)

    def _newest(self, key: str, step: int, start: Mapping[str, float]) -> Mapping[str, float]:
        found = (getattr(entry, key) for entry in reversed(self.changes) if entry.step <= step)
        return next((named for named in found if named is not None), start)

    def see(self, step: int, metrics: Mapping[str, tuple[float, int]]) -> None:
        """Takes note of the ``batch_metrics`` of a generation that has ``step`` optimizer steps before it."""
        if self._function is None:
            return
        means = {name: metrics[key][0] for name in self._sampler.domains if (key := f"reward/{name}") in metrics}
        record = {"step": step, "reward": _known(means)}
        if held_out := _known(self._held_out):
            record["held_out"] = held_out
        self.history.append(record)

    def settle(self, step: int) -> None:
        """Asks the curriculum after the step that has ``step`` before it; all ranks call it together.

        Raises:
            ConfigError: what it returned cannot be used, or it raised.
        """
        first, period = step + _AHEAD, self._sampler.geometry.period_steps
        if self._function is None or first % period or first // self._every == (first - period) // self._every:
            return
        change = Launch.join().share(lambda: self._ask(first))
        if change:
            try:
                self._add(ScheduleEntry(step=first, **change))
            except CounterpointError as error:
                raise ConfigError(f"{self._where(first)} returned {shown(change)}. {error}") from error

    def _ask(self, first: int) -> dict[str, dict[str, float]]:
        """What changes from step ``first`` on; of the first rank."""
        assert self._function is not None
        mix = {"shares": dict(self.shares(first)), "weights": {}}
        mix["weights"] = dict.fromkeys(self._sampler.domains, 1.0) | dict(self.weights(first))
        try:
            with Blame(self._where(first), ". Mend it, then resume from the last checkpoint."):
                found = self._function(copy.deepcopy(self.history), mix)
        except RewardError as error:
            raise ConfigError(str(error)) from error
        if found is None:
            return {}
        if problem := self._problem(found):
            raise ConfigError(
                f"{self._where(first)} returned {shown(found)}: {problem} Mend it, then resume from the last "
                "checkpoint."
            )
        return {
            key: {name: float(value) for name, value in found[key].items()}
            for key in _KEYS
            if found.get(key) is not None
        }

    def _where(self, first: int) -> str:
        return f"For step {first} the curriculum {self._name!r}"

    def _problem(self, found: Any) -> str | None:
        if not isinstance(found, Mapping):
            return "it must be a mapping with 'shares', 'weights' or both, or None."
        for key, named in found.items():
            if key not in _KEYS:
                return f"unknown key {key!r}. {nearest(str(key), _KEYS)}"
            if named is None:
                continue
            if not isinstance(named, Mapping):
                return f"{key} must be a mapping from domain to number."
            for name, value in named.items():
                if not _is_positive(value):
                    return f"{key}[{name!r}] is {shown(value)}, and must be a positive finite number."
            for message in name_problems(named, self._sampler.domains, whole=key == "shares"):
                return f"{key}: {message}"
        return None

    def _add(self, change: ScheduleEntry) -> None:
        """Lets a change of the curriculum hold."""
        if change.shares is not None and change.shares != self.shares(change.step):
            self._sampler.change_shares(self._sampler.geometry.quota_step(change.step), change.shares)
        self._check(change)
        self.changes.append(change)

    def _check(self, change: ScheduleEntry) -> None:
        """Refuses what the strategy or the balance cannot go with."""
        if change.weights:
            self._weighing.check_weights()
        check_halves(self._strategy, self._sampler, self._sampler.quotas.parts[-1])


def _is_positive(value: Any) -> bool:
    number: Any = value
    return isinstance(value, Real) and not isinstance(value, bool) and bool(0 < number <= sys.float_info.max)


def _known(means: Mapping[str, float]) -> dict[str, float]:
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}

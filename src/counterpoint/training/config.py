"""``DomainGRPOConfig``: TRL's settings with those of training on several domains, and what they ask of every step."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from counterpoint.balance import BALANCES, MAX_ROUNDS, build_balance
from counterpoint.config.schedule import plain_schedule, read_changes
from counterpoint.domains.sampler import MixedRows, QuotaSampler
from counterpoint.domains.shares import Quotas, rows_per_prompt
from counterpoint.errors import ConfigError, DomainError, StrategyError, nearest
from counterpoint.surgery import STRATEGIES, Strategy, build_weighting, resolve_strategy
from counterpoint.surgery.weightings import weighting_problems
from counterpoint.training.domain_settings import checked_per_domain, generations_of

SHARE_RULES = ("exact", "carry")
BUFFERS = ("device", "bfloat16", "cpu")

CurriculumFunction = Callable[[list[dict[str, Any]], dict[str, Any]], Mapping[str, Any] | None]
"""From the history and the mix in use, ``{"shares": ..., "weights": ...}``, to what changes of it."""

CurriculumSpec = str | Mapping[str, Any] | CurriculumFunction
"""``package.module:function``, ``{"function": ..., "every": 10}``, or in a script the function itself."""


@dataclass
class DomainGRPOConfig(GRPOConfig):
    r"""
    Configuration class for the [`DomainGRPOTrainer`]: all of [`~trl.GRPOConfig`], parsed, logged and saved as it is.

    ``router_aux_loss_coef=None`` means 0 here, see docs/strategies.md.

    Parameters:
        strategy (`str`, `dict` or [`~counterpoint.surgery.Strategy`], *optional*, defaults to `"mgs"`):
            How the domains' gradients are combined: a name in `counterpoint.surgery.STRATEGIES`, or a mapping as in a
            configuration, `{"name": "mgs", "protect": ["math"]}` or `{"grouping": ..., "weighting": ...}`.
        shares (`dict[str, float]`, *optional*):
            Relative share of every step's prompts per domain. `None` means equal shares.
        share_rule (`str`, *optional*, defaults to `"exact"`):
            `"exact"` refuses shares that a step cannot meet; `"carry"` meets them over steps.
        buffers (`str`, *optional*, defaults to `"device"`):
            Where domain gradients wait for the end of the step: `"device"`, `"bfloat16"` or `"cpu"`.
        balance (`str` or `dict`, *optional*, defaults to `"none"`):
            What each domain weighs in a step, before gradients are combined: a name in `counterpoint.balance.BALANCES`,
            or `{"name": "worst", "options": {"learning_rate": 0.05}}`. `"none"` is TRL's own loss.
        dynamic_sampling (`int`, *optional*, defaults to `0`):
            Most rounds of extra generation in which prompts that teach nothing are replaced, each by a prompt of its
            own domain.
        schedule (`list[dict]`, *optional*):
            Shares and weights that change at given steps, in their order: `[{"step": 50, "shares": {"math": 3,
            "code": 1}}, {"step": 80, "weights": {"math": 2.0}}]`. Weights are factors on what `balance` gives a domain.
        curriculum (`str`, `dict` or a function, *optional*):
            A function that settles shares and weights from the scores so far: itself, `"my_curriculum:next_mix"`, or
            `{"function": ..., "every": 10}` to ask it every 10 steps; see docs/weights.md.
        grams_every (`int`, *optional*, defaults to `1`):
            Optimizer steps between records of all Grams. A strategy without surgery costs what TRL costs in between.
        per_domain (`dict[str, dict]`, *optional*):
            Settings that a domain has for itself, `{"math": {"temperature": 0.8, "stop": ["</answer>"]}}`: any of
            `temperature`, `top_p`, `max_completion_length`, `num_generations`, `beta`, `epsilon`, `epsilon_high` and
            `stop` (a list of strings that end a completion). What a domain does not have is the whole training's. They
            hold in the evaluations of `run`, too; `beta` and the clip ranges do not in TRL's `eval_loss`.
        run (`str`, *optional*):
            Run directory to write (`"runs/mine"`), for `counterpoint report`, `diagnose`, `recover` and `study`.

    Raises:
        StrategyError, DomainError, ConfigError: a value that cannot be used, naming the setting.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 - TRL's own form
        *GRPOConfig._VALID_DICT_FIELDS,
        *("strategy", "shares", "balance", "curriculum", "per_domain"),
    ]

    strategy: Strategy | str | dict[str, Any] | None = field(
        default="mgs",
        metadata={
            "help": f"How the domains' gradients are combined: {', '.join(STRATEGIES)}, or a JSON object as in a "
            "configuration."
        },
    )
    shares: dict[str, float] | str | None = field(
        default=None,
        metadata={"help": "JSON object: relative share of every step's prompts per domain. None means equal shares."},
    )
    share_rule: str = field(
        default="exact",
        metadata={
            "help": "'exact' refuses shares that a step cannot meet; 'carry' meets them over steps.",
            "choices": SHARE_RULES,
        },
    )
    buffers: str = field(
        default="device",
        metadata={
            "help": "Where domain gradients wait for the end of the step: 'device', 'bfloat16' (on the device, half as "
            "large) or 'cpu'.",
            "choices": BUFFERS,
        },
    )
    balance: dict[str, Any] | str | None = field(
        default="none",
        metadata={
            "help": f"What each domain weighs in a step: {', '.join(BALANCES)}, or a JSON object with 'name' and "
            "'options'. 'none' is TRL's own loss."
        },
    )
    dynamic_sampling: int = field(
        default=0,
        metadata={
            "help": "Most rounds of extra generation in which prompts whose completions all have the same reward are "
            "replaced by others of their domain; 0 for none."
        },
    )
    schedule: list[dict[str, Any]] | str | None = field(
        default=None,
        metadata={
            "help": 'JSON list of shares and weights by step: \'[{"step": 50, "shares": {"math": 3, "code": 1}}]\'.'
        },
    )
    curriculum: CurriculumFunction | str | dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Your function that settles shares and weights from the scores so far, as package.module:function, "
            "or a JSON object with 'function' and 'every'."
        },
    )
    grams_every: int = field(default=1, metadata={"help": "Optimizer steps between records of all Grams, at least 1."})
    per_domain: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "JSON object: domain -> settings that it has for itself, of temperature, top_p, "
            "max_completion_length, num_generations, beta, epsilon, epsilon_high and stop."
        },
    )
    run: str | None = field(
        default=None,
        metadata={
            "help": "Run directory to write, as `counterpoint train` does: metrics, Grams, held-out scores with "
            "intervals, checkpoints. `report`, `diagnose`, `recover` and `study` read it. Needs an eval_dataset."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strategy is None:
            self.strategy = "mgs"
        resolve_strategy(self.strategy)
        if self.share_rule not in SHARE_RULES:
            raise ConfigError(f"share_rule={self.share_rule!r}: {nearest(str(self.share_rule), SHARE_RULES)}")
        if self.buffers not in BUFFERS:
            raise StrategyError(f"buffers={self.buffers!r} is unknown: {nearest(str(self.buffers), BUFFERS)}")
        if type(self.grams_every) is not int or self.grams_every < 1:
            raise ConfigError(f"grams_every={self.grams_every!r}: it must be a whole number of steps, 1 or more.")
        if type(self.dynamic_sampling) is not int or not 0 <= self.dynamic_sampling <= MAX_ROUNDS:
            raise ConfigError(
                f"dynamic_sampling={self.dynamic_sampling!r}: it must be a whole number of rounds, 0 to {MAX_ROUNDS}."
            )
        if self.balance is None:
            self.balance = "none"
        build_balance(self.balance)
        self.per_domain = checked_per_domain(self.per_domain)
        _check_shares(self.shares)
        curriculum = plain_curriculum(self.curriculum)
        self.schedule = plain_schedule(read_changes(self.schedule, curriculum).schedule)

    def to_dict(self) -> dict[str, Any]:
        """The settings as trackers get them, all plain data."""
        return {**super().to_dict(), **self._plain()}

    def __getstate__(self) -> dict[str, Any]:
        # training_args.bin is a pickle, and a rule that a script defines cannot always be pickled
        return {**self.__dict__, **self._plain()}

    def _plain(self) -> dict[str, Any]:
        return {"strategy": plain_strategy(self.strategy), "curriculum": plain_curriculum(self.curriculum)}


def _check_shares(shares: Any) -> None:
    if shares is None:
        return
    if not isinstance(shares, Mapping) or not shares:
        raise DomainError(f"shares={shares!r}: give a mapping from domain to share, such as {{'math': 2, 'qa': 1}}.")
    for name, share in shares.items():
        if type(share) not in (int, float) or not (share > 0 and math.isfinite(share)):
            raise DomainError(f"shares[{name!r}]={share!r}: a share must be a number above 0.")


def own_settings(args: GRPOConfig) -> dict[str, Any]:
    """What ``DomainGRPOConfig`` adds, as ``args`` has it; the defaults where it is a plain ``GRPOConfig``."""
    added = {item.name: item.default for item in fields(DomainGRPOConfig)}
    for item in fields(GRPOConfig):
        del added[item.name]
    return {name: getattr(args, name, default) for name, default in added.items()}


def plain_strategy(spec: Strategy | str | Mapping[str, Any] | None) -> str | dict[str, Any]:
    """A strategy as text and numbers: its name, or both its parts, a function as ``module:name``."""
    strategy = resolve_strategy(spec or "mgs")
    if STRATEGIES.get(strategy.name) == strategy:
        return strategy.name
    return {"grouping": _plain(strategy.grouping), "weighting": _plain(strategy.weighting)}


def plain_curriculum(spec: CurriculumSpec | None) -> dict[str, Any] | None:
    """A curriculum as plain data, its function by its place. Without the folder, which may move."""
    if spec is None:
        return None
    long = dict(spec) if isinstance(spec, Mapping) else {"function": spec}
    function = long["function"]
    if callable(function):
        kind = function if hasattr(function, "__qualname__") else type(function)
        function = f"{kind.__module__}:{kind.__qualname__}"
    return {"function": function, "every": long.get("every", 1)}


def _plain(part: Any) -> Any:
    if isinstance(part, Mapping):
        return {str(key): _plain(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [_plain(value) for value in part]
    if part is None or isinstance(part, str | int | float):
        return part
    named = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}:{named.__qualname__}"


def quota_sampler(
    args: GRPOConfig,
    sizes: Mapping[str, int],
    shares: Mapping[str, float],
    rule: str,
    mixed: Mapping[str, MixedRows] | None = None,
    schedule: Any = None,
) -> QuotaSampler:
    """The order of prompts for training with ``args`` on domains of these sizes and shares; see ``QuotaSampler``.

    ``schedule`` is as ``DomainGRPOConfig.schedule``.

    Raises:
        DomainError: a batch that does not fit, or shares that a step of it cannot hold, naming what would do.
    """
    assert args.num_generations is not None
    sampler = QuotaSampler(
        sizes,
        shares=shares,
        num_generations=generations_of(args, list(sizes)),
        rows_per_device=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        steps_per_generation=args.steps_per_generation,
        iterations=args.num_iterations,
        world=args.world_size,
        seed=args.seed,
        rule=rule,
        shuffle=args.shuffle_dataset is not False,
        mixed=mixed,
    )
    for entry in read_changes(schedule, None, sizes).schedule:
        if entry.shares is not None:
            try:
                sampler.change_shares(sampler.geometry.quota_step(entry.step), entry.shares)
            except DomainError as error:
                raise DomainError(f"schedule, step {entry.step}: {error}") from error
    return sampler


def check_strategy(strategy: Strategy, sampler: QuotaSampler) -> None:
    """Refuses a strategy that names a domain that is not there, or finds only one half of a domain's gradient.

    The sampler's shares may change; each of them is looked at.

    Raises:
        DomainError: naming the domain, or saying what to set so that it has two micro-batches in every step.
    """
    for path, message in weighting_problems(strategy.weighting, sampler.domains):
        raise DomainError(f"The strategy {strategy.name!r}: {'.'.join(map(str, path))} {message}")
    for quotas in sampler.quotas.parts:
        check_halves(strategy, sampler, quotas)


def check_halves(strategy: Strategy, sampler: QuotaSampler, quotas: Quotas) -> None:
    """Refuses quotas of which a step has no two halves of each domain, where the strategy compares them.

    Raises:
        DomainError: saying what to set.
    """
    if len(sampler.domains) < 2 or not build_weighting(strategy.weighting).uses_halves:
        return
    geometry = sampler.geometry
    fewest = [min(counts) for counts in zip(*map(quotas.counts, range(_STEPS_LOOKED_AT)), strict=True)]
    for name, units in zip(sampler.domains, fewest, strict=True):
        found = units * geometry.unit_micro_batches
        if found < 2:
            raise DomainError(
                f"The strategy {strategy.name!r} compares two halves of every domain's gradient, so each domain needs "
                f"at least 2 micro-batches in every step, and {name!r} has {found}. Double "
                f"gradient_accumulation_steps (it is {geometry.accumulation}), or halve per_device_train_batch_size "
                f"(it is {geometry.rows_per_device})."
            )


_STEPS_LOOKED_AT = 64
"""Steps over which a domain's fewest units are taken; with exact shares every step is the same."""


def total_steps(args: GRPOConfig, num_rows: int, shares: Mapping[str, float] | None = None) -> int:
    """Optimizer steps of a run: ``max_steps``, else ``num_train_epochs`` passes over all rows, as TRL counts them.

    A generation that is used ``num_iterations`` times takes as many steps. ``shares`` are those of the domains, which
    matter where their ``num_generations`` differ.
    """
    if args.max_steps > 0:
        return args.max_steps
    assert args.num_generations is not None
    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    rows_of_prompt = rows_per_prompt(shares, generations_of(args, list(shares))) if shares else args.num_generations
    return math.ceil(args.num_train_epochs * num_rows * rows_of_prompt * args.num_iterations / rows_per_step)

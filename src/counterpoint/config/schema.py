"""The whole configuration as pydantic models; every field carries its description, default and example."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from counterpoint.balance import MAX_ROUNDS
from counterpoint.config.document import dump_yaml
from counterpoint.config.domain import DomainConfig, fill_domain
from counterpoint.config.schedule import Curriculum, Schedule
from counterpoint.config.section import LARGEST_SEED, MAX_COUNT, MAX_NAME, DomainName, Path, Section
from counterpoint.config.variables import Filled, put_back
from counterpoint.registry import SEQUENTIAL


class LoraConfig(Section):
    """LoRA adapters instead of full training (extra `peft`)."""

    r: int = Field(default=16, gt=0, description="Rank of the adapters.")
    alpha: float = Field(default=32.0, gt=0, description="Scale of the adapters.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapters' input.")
    target_modules: str | list[str] | None = Field(
        default=None,
        description="Modules to adapt; null lets PEFT choose for the architecture.",
        examples=["all-linear", ["q_proj", "v_proj"]],
    )


class ModelConfig(Section):
    """The model that is trained."""

    path: Path = Field(
        default="pocket",
        description="`pocket` (the embedded model), a checkpoint folder, or a hub id.",
        examples=["Qwen/Qwen3-0.6B"],
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit on the hub; null means the newest.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Type of the weights in training."
    )
    attn_implementation: str | None = Field(
        default=None, description="Attention code; null lets transformers choose.", examples=["sdpa"]
    )
    trust_remote_code: bool = Field(default=False, description="Whether code that comes with the model may run.")
    lora: LoraConfig | None = Field(default=None, description="LoRA adapters; null trains all weights.")


class StrategyConfig(Section):
    """How the domain gradients of a step become one update; docs/strategies.md has all names and options."""

    name: str | None = Field(
        default=None,
        description="A named strategy, or `sequential`; null where grouping and weighting are spelled out.",
        examples=["mgs"],
    )
    grouping: str | None = Field(
        default=None,
        description="What one vector is; goes with `weighting`. Of your own as `package.module:function`.",
        examples=["module"],
    )
    weighting: str | None = Field(
        default=None,
        description="How domains in conflict are weighted; goes with `grouping`. Of your own as "
        "`package.module:object`.",
        examples=["upgrad"],
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the weighting, also of a named strategy's.", examples=[{"c": 0.4}]
    )
    protect: list[str] = Field(
        default_factory=list,
        description="Domains whose gradients are never altered; the others give way to them. For weightings with the "
        "option `protect`, and the strategies made of them.",
        examples=[["math"]],
    )
    order: list[str] | None = Field(
        default=None,
        description="`sequential` only: the domains in the order of their stages, a domain may return; null means the "
        "order of `domains`.",
        examples=[["math", "code", "math"]],
    )
    steps: int | None = Field(
        default=None,
        gt=0,
        description="`sequential` only: steps of each stage; null divides `training.max_steps` evenly.",
        examples=[50],
    )

    @property
    def label(self) -> str:
        """The strategy in one word, for file names and tables: ``module-upgrad`` or ``mgs-ema-decay-0.5-protect-math``.

        Options that are mappings go without their name: ``global-static-math-2-qa-0.5``.
        """
        protect = ["protect", *self.protect] if self.protect else []
        return _label(self.name or f"{self.grouping}-{self.weighting}", self.options, protect)

    @property
    def spec(self) -> str | dict[str, Any]:
        """The strategy as ``counterpoint.surgery.Surgeon`` takes it: its name, or what is set of it."""
        if self.name is not None and not self.options and not self.protect:
            return self.name
        return self.model_dump(exclude_defaults=True, exclude={"order", "steps"})

    @property
    def within_a_stage(self) -> str | dict[str, Any]:
        """What the Surgeon is to do; a stage of a sequential run holds one domain, so there it is plain mixing."""
        return "mixed" if self.sequential else self.spec

    @property
    def sequential(self) -> bool:
        """Whether training goes one domain after another."""
        return self.name == SEQUENTIAL


def _label(name: str, options: Mapping[str, Any], more: Sequence[str] = ()) -> str:
    words = [name]
    for option, value in options.items():
        words += _words(value) if isinstance(value, dict) else [option, *_words(value)]
    return re.sub(r"[^A-Za-z0-9._-]", "-", "-".join([*words, *more]))


def _words(value: Any) -> list[str]:
    """A value in a name: 2 for 2.0, lists and mappings one after another."""
    if isinstance(value, dict):
        return [word for key, item in value.items() for word in (str(key), *_words(item))]
    if isinstance(value, list):
        return [word for item in value for word in _words(item)]
    return [repr(value).removesuffix(".0") if isinstance(value, float) else str(value)]


class BalanceConfig(Section):
    """What each domain weighs in a step, before its gradient is combined with the others'; docs/weights.md."""

    name: str = Field(
        default="none",
        description="`none` (TRL's own loss), `tokens`, `prompts`, `signal`, `norm` or `worst`.",
        examples=["tokens"],
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the rule.", examples=[{"learning_rate": 0.05}]
    )

    @property
    def label(self) -> str:
        """The rule in one word, for file names: ``worst-learning_rate-0.05``."""
        return _label(self.name, self.options)

    @property
    def spec(self) -> str | dict[str, Any]:
        """The rule as ``DomainGRPOConfig.balance`` takes it."""
        return {"name": self.name, "options": self.options} if self.options else self.name


class SurgeryConfig(Section):
    """Where the gradients of a step's domains wait until they are combined."""

    buffers: Literal["device", "bfloat16", "cpu"] = Field(
        default="device",
        description="`device`: beside the model. `bfloat16`: there, in half the memory of float32. `cpu`: in the "
        "memory of the host, copied while the next micro-batch computes.",
    )


class EvaluationConfig(Section):
    """How every domain is evaluated before, during and after training."""

    prompts: int = Field(default=64, gt=0, le=MAX_COUNT, description="Held-out prompts per domain.")
    samples: int = Field(default=4, gt=0, le=MAX_COUNT, description="Sampled completions per prompt.")
    every: int | None = Field(
        default=None, gt=0, description="Steps between evaluations during training; null means none."
    )
    before: bool = Field(default=True, description="Whether to evaluate the untouched model first.")
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="Sampling temperature.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus of the sampled tokens.")
    greedy: bool = Field(default=True, description="Whether to score one greedy completion per prompt too.")
    batch_size: int = Field(default=64, gt=0, le=MAX_COUNT, description="Completions generated at once.")
    max_new_tokens: int | None = Field(
        default=None, gt=0, description="Longest completion in tokens; null means `training.max_completion_length`."
    )
    seed: int = Field(
        default=0, ge=0, le=LARGEST_SEED, description="Seed of the choice of held-out prompts and of the sampling."
    )


class RecoveryConfig(Section):
    """Whether a sequential run looks after the domains it has trained; `docs/recovery.md` states the test."""

    watch: bool = Field(
        default=False,
        description="`sequential` only: test earlier domains during later stages, and refresh one that falls.",
    )
    level: float = Field(
        default=0.05, gt=0, lt=0.5, description="Chance that a run in which no domain falls starts any refresh."
    )
    every: int = Field(default=10, gt=0, description="Steps between looks in a later stage; its end is always one.")
    steps: int = Field(default=40, gt=0, description="Most steps of one refresh. They come on top of those configured.")
    refresh_every: int = Field(default=5, gt=0, description="Steps between looks in a refresh, which may end it.")
    times: int = Field(default=2, gt=0, description="Most refreshes of one domain in one stage.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Learning rate of a refresh; null means `training.learning_rate`.",
        examples=[1e-4],
    )


class RunConfig(Section):
    """The run directory, the seed, and what is kept."""

    dir: Path = Field(default="runs", description="Folder of all runs, below the current folder unless absolute.")
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=MAX_NAME,
        description="Name of this run; null means the configuration file's name with the strategy, as in `pocket-mgs`.",
    )
    seed: int = Field(
        default=0, ge=0, le=LARGEST_SEED, description="Seed of training: order of prompts, sampling, surgery."
    )
    save_every: int = Field(default=50, gt=0, description="Steps between checkpoints.")
    keep: int | None = Field(default=2, gt=0, description="Newest checkpoints that are kept; null keeps all.")
    grams_every: int = Field(default=1, gt=0, description="Steps between records in `grams.jsonl`.")
    samples: int = Field(default=8, ge=0, description="Completions kept per domain and evaluation in `samples.jsonl`.")
    device: Literal["auto", "cpu"] = Field(default="auto", description="`auto` uses a GPU where there is one.")


def _expand_model(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _expand_named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _fill_domains(value: Any) -> Any:
    return {name: fill_domain(name, domain) for name, domain in value.items()} if isinstance(value, dict) else value


Model = Annotated[ModelConfig, BeforeValidator(_expand_model, json_schema_input_type=str | ModelConfig)]
Strategy = Annotated[StrategyConfig, BeforeValidator(_expand_named, json_schema_input_type=str | StrategyConfig)]
Balance = Annotated[BalanceConfig, BeforeValidator(_expand_named, json_schema_input_type=str | BalanceConfig)]
Domains = Annotated[dict[DomainName, DomainConfig], Field(min_length=1), BeforeValidator(_fill_domains)]


class Config(Section):
    """One training run. Make it with ``load_config`` or ``parse_config``, which check more than the fields alone."""

    model: Model = Field(
        default=ModelConfig(),
        description="The model that is trained. A plain string stands for its `path`.",
        examples=["pocket"],
    )
    strategy: Strategy = Field(
        default=StrategyConfig(name="mgs"),
        description="How the domain gradients of a step become one update. A plain string stands for its `name`.",
        examples=["mgs", {"grouping": "module", "weighting": "upgrad"}],
    )
    balance: Balance = Field(
        default=BalanceConfig(),
        description="What each domain weighs in a step: a rule that sets its effective weight. A plain string stands "
        "for its `name`.",
        examples=["tokens", "worst"],
    )
    dynamic_sampling: int = Field(
        default=0,
        ge=0,
        le=MAX_ROUNDS,
        description="Most rounds of extra generation in which prompts that teach nothing, because all their "
        "completions have the same reward, are replaced by other prompts of their domain.",
        examples=[3],
    )
    domains: Domains = Field(
        description="Name -> domain, in the order of every table. Names are lower-case letters, digits, `_` and `-`."
    )
    share_rule: Literal["exact", "carry"] = Field(
        default="exact",
        description="`exact`: every step holds every domain's share exactly. `carry`: where the batch cannot be split "
        "so, what a domain misses in one step it gets in a later one.",
    )
    schedule: Schedule = Field(
        default=(),
        description="Shares and weights that change at given steps; before the first one the domains' own shares hold.",
        examples=[[{"step": 50, "shares": {"math": 3, "code": 1}}, {"step": 80, "weights": {"math": 2.0}}]],
    )
    curriculum: Curriculum | None = Field(
        default=None,
        description="A function of your own that settles shares and weights from the scores so far. A plain string "
        "stands for its `function`.",
        examples=["my_curriculum:next_mix"],
    )
    max_prompt_tokens: int = Field(
        default=512, gt=0, description="Longest prompt in tokens; longer ones are dropped and counted, never cut."
    )
    training: dict[str, Any] = Field(
        default_factory=dict,
        description="Passed unchanged to `trl.GRPOConfig`.",
        examples=[{"max_steps": 100, "learning_rate": 1e-6}],
    )
    surgery: SurgeryConfig = Field(
        default=SurgeryConfig(), description="Where the gradients of a step's domains wait until they are combined."
    )
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="How every domain is evaluated.")
    recovery: RecoveryConfig = Field(
        default=RecoveryConfig(), description="Whether domains that fall during training are refreshed."
    )
    run: RunConfig = Field(default=RunConfig(), description="The run directory, the seed, and what is kept.")

    _filled: tuple[Filled, ...] = ()

    @property
    def filled(self) -> tuple[Filled, ...]:
        """What came from the environment; it is in use here, and ``to_yaml`` writes the variable's name."""
        return self._filled

    def took(self, filled: Iterable[Filled]) -> Self:
        """The same configuration, of which ``filled`` came from the environment."""
        taken = self.model_copy()
        taken._filled = tuple(filled)
        return taken

    def written(self) -> dict[str, Any]:
        """The configuration as it may be kept: every default filled in, ``${VAR}`` for what was taken from it."""
        return put_back(self.model_dump(mode="json"), self._filled)

    def to_yaml(self) -> str:
        """What :meth:`written` gives as YAML; loading it gives an equal configuration while its variables are set."""
        return dump_yaml(self.written())


def config_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, shorthands included; editors complete and check YAML by it."""
    from counterpoint.balance import BALANCES
    from counterpoint.surgery import GROUPINGS, STRATEGIES, WEIGHTINGS  # late: it brings torch

    schema = Config.model_json_schema()
    strategy = schema["$defs"]["StrategyConfig"]["properties"]
    own, null = {"type": "string", "pattern": ":"}, {"type": "null"}
    strategy["name"]["anyOf"] = [{"enum": [*STRATEGIES, SEQUENTIAL]}, null]
    strategy["grouping"]["anyOf"] = [{"enum": [*GROUPINGS]}, own, null]
    strategy["weighting"]["anyOf"] = [{"enum": [*WEIGHTINGS]}, own, null]
    schema["$defs"]["BalanceConfig"]["properties"]["name"]["enum"] = [*BALANCES]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

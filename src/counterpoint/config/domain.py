"""The section of one domain: its rows, its prompt, its reward and its share."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from counterpoint.config.section import MAX_COUNT, Section, Share
from counterpoint.config.sources import Sources, expand_source

OWN_REWARDS = ("pocket", "reasoning_gym")
"""Source types that bring a reward of the same name."""


class MetricConfig(Section):
    """A reward that is measured, or one of a domain's rewards without its weight."""

    name: str = Field(
        min_length=1,
        description="A reward of counterpoint, or `package.module:object` for your own.",
        examples=["math", "my_rewards:politeness"],
    )
    label: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Name of this part in the metrics; null means its name. Needed to use one reward twice.",
        examples=["strict"],
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the reward.", examples=[{"extraction": "boxed"}]
    )
    folder: str | None = Field(
        default=None,
        description="Folder of your own reward's module; null looks beside the configuration, and last in the current "
        "folder. Installed packages and `PYTHONPATH` come first.",
        examples=["rewards"],
    )


class RewardConfig(MetricConfig):
    """One reward of a domain."""

    weight: float = Field(default=1.0, ge=-1e18, le=1e18, description="Factor in the domain's total.", examples=[0.2])


def expand_reward(value: Any) -> Any:
    """A list of reward mappings from a name, a mapping, or a list of either."""
    items = value if isinstance(value, list) else [value]
    return [{"name": item} if isinstance(item, str) else item for item in items]


Rewards = Annotated[
    tuple[RewardConfig, ...],
    Field(min_length=1),
    BeforeValidator(expand_reward, json_schema_input_type=str | RewardConfig | list[str | RewardConfig]),
]

Metrics = Annotated[
    tuple[MetricConfig, ...],
    BeforeValidator(expand_reward, json_schema_input_type=str | MetricConfig | list[str | MetricConfig]),
]


class DomainEvaluation(Section):
    """The held-out rows of one domain."""

    source: Sources | None = Field(
        default=None,
        description="Where held-out rows come from, or a list of sources; null holds them out of the training rows "
        "(for `pocket`: its own test rows).",
        examples=["data/test.jsonl"],
    )
    size: int | None = Field(
        default=None, gt=0, le=MAX_COUNT, description="Number of held-out prompts; null means `evaluation.prompts`."
    )


StopString = Annotated[str, Field(min_length=1)]


class DomainTraining(Section):
    """What a domain has for itself of `training`, also when it is evaluated; see docs/domains.md."""

    temperature: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Sampling temperature, also of the log-probabilities in the loss; null means "
        "`training.temperature`, and in evaluations `evaluation.temperature`.",
        examples=[0.8],
    )
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Nucleus of the sampled tokens; null means `training.top_p`, and in evaluations "
        "`evaluation.top_p`.",
        examples=[0.95],
    )
    max_completion_length: int | None = Field(
        default=None,
        gt=0,
        description="Longest completion in tokens, at most `training.max_completion_length`; null means that, and in "
        "evaluations `evaluation.max_new_tokens` where it is given.",
        examples=[64],
    )
    num_generations: int | None = Field(
        default=None,
        ge=2,
        le=1_000_000,
        description="Completions of each prompt in training; null means `training.num_generations`. Shares are then "
        "shares of completions.",
        examples=[16],
    )
    beta: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Factor of the KL term; null means `training.beta`, which must be above 0 where any domain's is.",
        examples=[0.04],
    )
    epsilon: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Lower clip range; null means `training.epsilon`.",
        examples=[0.2],
    )
    epsilon_high: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Upper clip range; null means `training.epsilon_high`, and the domain's `epsilon` where that is "
        "null too.",
        examples=[0.28],
    )
    stop: list[StopString] | None = Field(
        default=None,
        min_length=1,
        description="Strings that end a completion; the token that completes one is kept. Null means none.",
        examples=[["</answer>"]],
    )

    @property
    def own(self) -> dict[str, Any]:
        """The settings that are given, as ``DomainGRPOConfig.per_domain`` has them."""
        return self.model_dump(exclude_none=True)


class DomainConfig(Section):
    """A domain: a source of prompts with its reward."""

    model_config = ConfigDict(json_schema_extra={"required": ["source"]})  # some sources bring their own reward

    source: Sources = Field(
        description="Where the rows come from, or a list of sources, each with its `share` inside the domain.",
        examples=["data/train.jsonl", "openai/gsm8k"],
    )
    prompt: str = Field(
        default="{prompt}",
        min_length=1,
        description="Template of the prompt over the row's columns. `{a.b}` and `{a[0]}` reach into nested values, "
        "`{{` and `}}` are literal braces.",
        examples=["Question: {question}\nAnswer:"],
    )
    system: str | None = Field(default=None, description="System prompt.", examples=["Think step by step."])
    chat: bool | None = Field(
        default=None,
        description="Whether prompts go through the tokenizer's chat template: true requires one, false means plain "
        "text, null uses it where the tokenizer has one.",
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Reward column -> the data's column (a dotted path), or a template with braces. "
        "Columns not named here are taken under their own name.",
        examples=[{"answer": "solution.final"}],
    )
    filter: dict[str, Any] | None = Field(
        default=None,
        description="Column -> value, or list of values, that a row must have to be used.",
        examples=[{"level": ["easy", "medium"]}],
    )
    limit: int | None = Field(
        default=None, gt=0, description="Read at most this many rows of each source.", examples=[1000]
    )
    reward: Rewards = Field(
        description="The reward: a name, a mapping, or a list of them. May be left out for `pocket` and "
        "`reasoning_gym` sources, which bring their own.",
        examples=["math", [{"name": "math"}, {"name": "format", "weight": 0.2}]],
    )
    metrics: Metrics = Field(
        default=(),
        description="Rewards that every held-out evaluation measures and that nothing is trained on, so that a reward "
        "which is met the wrong way shows: a name, a mapping, or a list of them.",
        examples=["repetition", [{"name": "length", "options": {"maximum": 300}}]],
    )
    unusable_rows: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="Rows that the reward says it cannot use: `refuse` stops before training and names them, `drop` "
        "leaves them out and counts them.",
    )
    share: Share = Field(default=1.0, description="Share of every step's prompts, relative to the other domains.")
    max_prompt_tokens: int | None = Field(
        default=None, gt=0, description="Longest prompt in tokens; null means the top-level `max_prompt_tokens`."
    )
    training: DomainTraining = Field(
        default=DomainTraining(), description="What this domain has for itself of `training`, also when evaluated."
    )
    evaluation: DomainEvaluation = Field(
        default=DomainEvaluation(), description="The held-out rows this domain is evaluated on."
    )


def fill_domain(name: str, value: Any) -> Any:
    """``value`` with what follows from the domain's name and source: the pocket task, the source's own reward."""
    if not isinstance(value, dict):
        return value
    filled = _name_pocket_task(name, value)
    if isinstance(filled.get("evaluation"), dict):
        filled["evaluation"] = _name_pocket_task(name, filled["evaluation"])
    written = filled.get("source")
    sources = written if isinstance(written, list) else [written]
    kinds = [source.get("type") if isinstance(source, dict) else None for source in sources]
    brought = [kind for kind in OWN_REWARDS if kinds and all(found == kind for found in kinds)]
    return ({"reward": brought[0]} if brought else {}) | filled


def _name_pocket_task(name: str, holder: dict[str, Any]) -> dict[str, Any]:
    if "source" not in holder:
        return dict(holder)
    written = holder["source"]
    if isinstance(written, list | tuple):
        return {**holder, "source": [_named(name, source) for source in written]}
    return {**holder, "source": _named(name, written)}


def _named(name: str, written: Any) -> Any:
    source = expand_source(written)
    if isinstance(source, dict) and source.get("type") == "pocket" and source.get("task") is None:
        return {**source, "task": name}
    return source

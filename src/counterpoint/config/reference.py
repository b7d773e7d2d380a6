"""``docs/configuration.md``, made from the schema by ``python -m counterpoint.config.reference``."""

import json
import sys
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from counterpoint.config.base import Section
from counterpoint.config.domain import DomainConfig, DomainEvaluation, RewardConfig
from counterpoint.config.schema import (
    Config,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    RecoveryConfig,
    RunConfig,
    StrategyConfig,
    SurgeryConfig,
)
from counterpoint.config.sources import SOURCES
from counterpoint.config.training_keys import REFUSED_KEYS, REFUSED_PREFIXES

_INTRO = """# Configuration

<!-- Made by `python -m counterpoint.config.reference > docs/configuration.md`. Change the descriptions in
`src/counterpoint/config/`, not this file. -->

A run is described by one YAML file:

```yaml
model: pocket
strategy: mgs
domains:
  math: {source: pocket}
  words:
    source: data/words.jsonl
    prompt: "Spell {word} backwards: "
    reward: text
training:
  max_steps: 40
  learning_rate: 5e-5
```

`counterpoint config check FILE` reports everything wrong with a file at once, each with its line;
`counterpoint config schema` prints a JSON schema for editors. The rules are the same everywhere:

* **Unknown keys are refused**, at any depth, with the nearest known one. A key written twice is refused too.
* **`--set key=value`** writes one value over the file's, by its dotted path: `--set training.max_steps=20`,
  `--set domains.math.reward.0.weight=0.5`, `--set 'domains.math.source={type: file, path: x.csv}'`. The value is YAML.
* **`${VAR}`** is filled in from the environment, `${VAR:-default}` with a default where it is unset or empty; unset
  without a default is an error. `$${VAR}` is the text `${VAR}`.
* **Secrets** are written as `${VAR}`, and only so: a text under a key that looks like a secret (`api_key`, `hub_token`,
  `password`; not `max_tokens`, `answer_key` or `eos_token`) is refused in `training` and in options. See below.
* **Numbers** follow YAML 1.2: `1e-5` is a number. Dates and `1:30` are text.
* **Relative paths** of data files and of the model are looked for beside the configuration file, then in the current
  folder. `run.dir` is below the current folder.
* **Shorthands**: a plain string at `model`, `strategy`, `source` or `reward` stands for the mapping's first key. A
  source that looks like a file (`data/x.jsonl`, `./x`) is a file, `owner/name` is a dataset of the hub, and `pocket` is
  the pocket task with the domain's name. `source` may be a list of sources ([domains](domains.md)).
* The run directory keeps the resolved file, every default filled in; it can be run again as it is.

**A configuration is a program.** A reward named `package.module:object` is imported and called with the options that
stand there, with your rights: run only configurations that you trust. `counterpoint config check`, `config schema`
and `plan` import no reward; `train`, `study` (also `--check`), `eval`, `refresh`, `recover`, `rollback`, `score`,
`merge` with several scales and those parts of `diagnose` that load prompts do, before anything is trained. Code that
comes with a model runs only with `model.trust_remote_code`.

**What comes from the environment is used and not kept.** The run's `config.yaml` holds `${VAR}` in the place of the
value, and the value is read again when the run is resumed, evaluated, diagnosed or refreshed: a variable that is not
set then is an error that names it, and one with another value is taken as it is now. A default that was used is a text
of the file and is kept. In reports, samples, logs, error messages, `environment.json`, studies, trackers and
checkpoints the variable's name stands for values of at least 8 characters; of 4, where the variable or the key looks
like a secret. What a value names (a run's folder, a checkpoint) is still called by its name in files that are read
again. `--set training.hub_token='${HF_TOKEN}'`, in single quotes, leaves the value to counterpoint; in double quotes
your shell writes it out, and it is refused.
"""

_TRAINING = """
## `training`

Every key is passed unchanged to `trl.GRPOConfig`, whose documentation describes it. `counterpoint config check` and
`counterpoint train` compare every value with the type, the choices and the range of its setting, and build TRL's
configuration, the optimizer, the schedule and the generation settings once, before any model is loaded. What fails is
named by its key. These keys are refused, because counterpoint sets them itself:

| key | instead |
|---|---|
"""

_SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("model", ModelConfig),
    ("model.lora", LoraConfig),
    ("strategy", StrategyConfig),
    ("surgery", SurgeryConfig),
    ("domains.NAME", DomainConfig),
    ("domains.NAME.reward", RewardConfig),
    ("domains.NAME.evaluation", DomainEvaluation),
    ("evaluation", EvaluationConfig),
    ("recovery", RecoveryConfig),
    ("run", RunConfig),
)


def reference() -> str:
    """The whole reference as Markdown."""
    parts = [_INTRO, _section("Top level", Config)]
    for path, section in _SECTIONS:
        parts.append(_section(f"`{path}`", section))
        if section is DomainConfig:
            parts += [_section(f"`domains.NAME.source`, type `{name}`", source) for name, source in SOURCES.items()]
    rows = [*REFUSED_KEYS.items(), *((f"{prefix}*", reason) for prefix, reason in REFUSED_PREFIXES.items())]
    parts.append(_TRAINING + "\n".join(f"| `{key}` | {reason} |" for key, reason in rows) + "\n")
    return "".join(parts)


def _section(title: str, section: type[Section]) -> str:
    rows = "\n".join(_row(name, info) for name, info in section.model_fields.items())
    about = (section.__doc__ or "").split("\n")[0] if section is not Config else ""
    heading = f"\n## {title}\n\n" + (f"{about}\n\n" if about else "")
    return f"{heading}| key | type | default | meaning |\n|---|---|---|---|\n{rows}\n"


def _row(name: str, info: FieldInfo) -> str:
    example = f" Example: `{_inline(info.examples[0])}`." if info.examples else ""
    return f"| `{name}` | {_type(info)} | {_default(info)} | {info.description}{example} |"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, StrategyConfig | ModelConfig):
        return f"`{value.name if isinstance(value, StrategyConfig) else value.path}`"
    if isinstance(value, Section):
        return "its own defaults"
    return f"`{_inline(value)}`"


def _inline(value: Any) -> str:
    """``value`` as it is written on one line of YAML."""
    if isinstance(value, str):
        return json.dumps(value) if "\n" in value or "{" in value else value
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _type(info: FieldInfo) -> str:
    limits = [
        sign + " " + (f"{value:,}" if isinstance(value, int) else f"{value:g}")
        for constraint in info.metadata
        for key, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if (value := getattr(constraint, key, None)) is not None
    ]
    return ", ".join([" or ".join(dict.fromkeys(_names(info.annotation))), *limits])


def _names(annotation: Any) -> Iterator[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _names(arguments[0])
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from _names(argument)
    elif origin is Literal:
        yield from (f"`{value}`" for value in arguments)
    elif origin in (list, tuple):
        yield f"list of {'/'.join(dict.fromkeys(_names(arguments[0])))}"
    elif origin is dict or (isinstance(annotation, type) and issubclass(annotation, Section)):
        yield "mapping"
    else:
        yield {str: "text", int: "integer", float: "number", bool: "boolean", type(None): "null"}.get(annotation, "any")


if __name__ == "__main__":
    sys.stdout.write(reference())

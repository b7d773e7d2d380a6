"""The configuration of a refresh: that of the domains, with one stage, another model and looks at every few steps."""

from pathlib import Path
from typing import Any

from counterpoint.config import Config, parse_config
from counterpoint.diagnosis.subject import model_of, wanted_domains
from counterpoint.errors import ConfigError, DomainError
from counterpoint.models import ADAPTER_CONFIG
from counterpoint.recovery.refreshing.results import RefreshOptions


def refresh_config(config: Config, model: str, domain: str, out: Path, options: RefreshOptions) -> Config:
    """What is trained: ``domain`` from ``model``, alone or with a share of the others, into the run ``out``.

    All domains stay, because all are evaluated. Without replay the strategy is ``sequential`` with one stage; with it
    the others divide their share evenly, under ``share_rule: carry``.

    Raises:
        ConfigError: an unknown domain, a protected domain that is the refreshed one, or a name that no run may have.
        DomainError: replay without any other domain.
    """
    wanted_domains(config, [domain, *options.protect])
    data = config.model_dump(mode="json")
    others = [name for name in config.domains if name != domain]
    _check(domain, others, options)
    data["model"] = _model(config, model)
    data["training"] |= {"max_steps": options.steps}
    if options.learning_rate is not None:
        data["training"]["learning_rate"] = options.learning_rate
    data["recovery"] = {}
    data["evaluation"] |= {"before": True, "every": None}
    seed = config.run.seed + 1 if options.seed is None else options.seed
    keep = None if config.run.keep is None else max(2, config.run.keep)
    data["run"] |= {
        "dir": str(out.parent),
        "name": out.name,
        "seed": seed,
        "save_every": options.every,
        "keep": keep,
    }
    if share := options.share_of_others:
        name = options.strategy or ("mgs" if options.protect else "mixed")
        data |= {"strategy": {"name": name, "protect": list(options.protect)}, "share_rule": "carry"}
        for other in others:  # as whole multiples, so that fractions of the batch stay simple
            data["domains"][other]["share"] = share
        data["domains"][domain]["share"] = (1 - share) * len(others)
    else:
        data["strategy"] = {"name": "sequential", "order": [domain], "steps": options.steps}
    return parse_config(data, like=config)


def _check(domain: str, others: list[str], options: RefreshOptions) -> None:
    if domain in options.protect:
        raise ConfigError(f"protect names {domain!r}, the domain that is refreshed. Name others, or none.")
    if options.share_of_others and not others:
        raise DomainError(f"replay needs other domains, and the configuration has only {domain!r}. Leave replay out.")
    if options.strategy == "sequential":
        raise ConfigError("strategy='sequential' has stages, and a refresh is one. Use mixed, pcgrad or mgs.")


def _model(config: Config, model: str) -> dict[str, Any]:
    """The checkpoint that is refreshed; adapters of its own are trained on, else those of the configuration if any."""
    chosen = model_of(config, model).model_dump(mode="json")
    if Path(model).exists():
        chosen["path"] = str(Path(model).resolve())
    if config.model.lora is not None and not (Path(chosen["path"]) / ADAPTER_CONFIG).is_file():
        chosen["lora"] = config.model.lora.model_dump(mode="json")
    return chosen

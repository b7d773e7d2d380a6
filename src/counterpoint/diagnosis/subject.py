"""What an analysis is about: a model, its tokenizer, the domains of a configuration and their completions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from counterpoint.config import Config, ModelConfig, load_config
from counterpoint.diagnosis.rollouts import Rollouts, read_rollouts, sample_rollouts, save_rollouts
from counterpoint.domains import Domain, load_domains
from counterpoint.errors import ConfigError, CounterpointError, DomainError, ModelError, nearest
from counterpoint.evaluation import Sampling
from counterpoint.models import check_model, load_model, load_tokenizer, resolve_path, with_tokenizer
from counterpoint.progress import Progress, silent
from counterpoint.runs import RunDirectory


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode on its device, its tokenizer, and domains by name in the configuration's order."""

    config: Config
    model: Any
    tokenizer: Any
    domains: dict[str, Domain]


def config_of(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a file, or the one in a run directory."""
    path = Path(path)
    return load_config(path / "config.yaml" if (path / "config.yaml").is_file() else path, overrides)


def open_subject(
    config: str | Path | Config, model: str | Path | None = None, domains: Sequence[str] | None = None
) -> Subject:
    """Loads a model and the domains it is measured on; what is wrong is said before any weight is read.

    ``model`` is a checkpoint folder, a hub id or ``pocket``, the configuration's own where it is None; one without a
    tokenizer is read with the configuration's. ``domains`` names those that are wanted; None means all.

    Raises:
        ConfigError, ModelError, DomainError: a configuration, model or domain that cannot be used.
    """
    config = config if isinstance(config, Config) else config_of(config)
    wanted = wanted_domains(config, domains)
    chosen = model_of(config, model)
    check_model(chosen)
    tokenizer = load_tokenizer(with_tokenizer(chosen, config.model))
    loaded = load_domains(
        config.model_copy(update={"domains": {name: config.domains[name] for name in wanted}}), tokenizer
    )
    policy = load_model(chosen).to(_device(config)).eval()
    return Subject(config, policy, tokenizer, {domain.name: domain for domain in loaded})


def wanted_domains(config: Config, names: Sequence[str] | None) -> list[str]:
    """``names`` checked against the configuration, in its order; all of them for None."""
    for name in names or ():
        if name not in config.domains:
            raise ConfigError(f"The configuration has no domain {name!r}; {nearest(name, config.domains)}")
    return [name for name in config.domains if names is None or name in names]


def model_of(config: Config, path: str | Path | None) -> ModelConfig:
    """The settings of the configuration's model with ``path`` in its place; refuses a run, or a folder not there."""
    if path is None:
        return config.model
    folder = Path(path).expanduser()
    if (folder / "run.json").is_file():
        places = [str(place) for _, place in RunDirectory(folder).checkpoints()]
        hint = f"Name one of its checkpoints: {', '.join(places)}." if places else "It has no checkpoint yet."
        raise ModelError(f"{path} is a run directory, and a model is wanted. {hint}")
    where = str(folder) if folder.exists() else str(path)
    found = config.model.model_copy(update={"path": where, "revision": None, "lora": None})
    resolve_path(found)
    return found


def completions_for(
    subject: Subject,
    *,
    file: Path | None = None,
    prompts: int = 64,
    samples: int = 4,
    seed: int = 0,
    at_least: int = 2,
    save: Path | None = None,
    on_progress: Progress = silent,
) -> dict[str, Rollouts]:
    """The completions of every domain of ``subject``: read from ``file``, or sampled from its model.

    ``samples`` of each of the first ``prompts`` training rows are drawn from a private random stream and written to
    ``save``. Refuses completions of fewer prompts than ``at_least``, or of another tokenizer.
    """
    if file is not None:
        return _given(subject, file, at_least)
    if prompts < at_least or samples < 1:
        raise CounterpointError(
            f"prompts={prompts}, samples={samples}: these are too few completions. This analysis needs at least "
            f"{at_least} prompts per domain, as the parts that it compares share none. Ask for more."
        )
    sampling = _sampling(subject.config, seed)
    found = {}
    for name, domain in subject.domains.items():
        found[name] = sample_rollouts(
            subject.model,
            subject.tokenizer,
            domain,
            prompts=prompts,
            samples=samples,
            sampling=sampling.within(subject.config.domains[name].training.own),
            on_batch=counter(f"sample {name}", prompts * samples, on_progress),
        )
    check_enough(found, subject.domains, at_least, "sampled and scored")
    if save is not None:
        save_rollouts(save, *found.values())
    return found


def _given(subject: Subject, file: Path, at_least: int) -> dict[str, Rollouts]:
    found = read_rollouts(file)
    for name in subject.domains:
        if name not in found:
            raise DomainError(f"{file} has no completions of the domain {name!r}; it has: {', '.join(found)}.")
    check_enough(found, subject.domains, at_least, str(file))
    _check_vocabulary({name: found[name] for name in subject.domains}, subject.model, file)
    return {name: found[name] for name in subject.domains}


def check_enough(rollouts: Mapping[str, Rollouts], names: Iterable[str], at_least: int, where: str) -> None:
    """Refuses fewer than ``at_least`` prompts in any domain, saying how many there are and how many are needed."""
    for name in names:
        have = rollouts[name].num_groups
        if have < at_least:
            raise CounterpointError(
                f"{where}: the domain {name!r} has completions of {have} prompt{'s' * (have != 1)}, and at least "
                f"{at_least} are needed. Sample {at_least - have} more."
            )


def _check_vocabulary(rollouts: Mapping[str, Rollouts], model: Any, file: Path) -> None:
    size = model.get_input_embeddings().weight.shape[0]
    highest = max(max((*item.prompt_ids, *item.completion_ids)) for r in rollouts.values() for item in r.items)
    if highest >= size:
        raise CounterpointError(
            f"{file}: a completion holds token {highest}, and the model knows only {size}. They belong to another "
            "tokenizer; sample completions of this model instead."
        )


def counter(what: str, total: int, on_progress: Progress) -> Callable[[int], None]:
    """A function that adds to what is done of ``total`` and tells ``on_progress``."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        on_progress(what, done, total)

    return count


def _sampling(config: Config, seed: int) -> Sampling:
    """As in training: its prompts, sampling and longest completion."""
    settings = config.training
    longest = settings.get("max_completion_length") or config.evaluation.max_new_tokens or Sampling.max_new_tokens
    return Sampling.of_training(settings, max_new_tokens=longest, batch_size=config.evaluation.batch_size, seed=seed)


def _device(config: Config) -> str:
    return "cuda" if config.run.device == "auto" and torch.cuda.is_available() else "cpu"

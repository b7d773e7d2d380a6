"""Scores of checkpoints on the held-out prompts of a configuration, without training; nothing of a batch is checked.

>>> from counterpoint.engine import compare_checkpoints
>>> compare_checkpoints(load_config("my.yaml"), ["pocket", "runs/a/checkpoints/step-60"])  # doctest: +SKIP
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import AutoConfig

from counterpoint.config import Config, ModelConfig
from counterpoint.disk import file_digest, write_json
from counterpoint.domains import Domain, load_domains
from counterpoint.engine.prepare import free_memory, uses_cpu
from counterpoint.errors import ConfigError, CounterpointError, ModelError
from counterpoint.evaluation import DomainScore, EvaluationPlan, evaluate
from counterpoint.evaluation.comparison import Comparison, compare_scores
from counterpoint.launch import Launch
from counterpoint.models import MODEL_FAULTS, check_model, load_model, load_tokenizer, resolve_path, with_tokenizer
from counterpoint.results import of_plain
from counterpoint.runs import Reporter
from counterpoint.training.config import DomainGRPOConfig


def compare_checkpoints(
    config: Config,
    checkpoints: Sequence[str | Path],
    *,
    cache: Path | None = None,
    reporter: Reporter | None = None,
) -> Comparison:
    """Checkpoints beside each other on the configuration's held-out prompts, with differences from the first.

    Args:
        config: its domains and the way they are evaluated; its batch and shares play no part.
        checkpoints: folders, hub ids or ``pocket``, one or more.
        cache: a folder for the scores of every checkpoint; one that has not changed is not evaluated again.
        reporter: hears of progress.

    Raises:
        ConfigError: no checkpoint, or one given twice.
        ModelError: a checkpoint cannot be read.
        DomainError, RewardError: a domain cannot be used or scored.
    """
    scores = evaluate_checkpoints(config, checkpoints, cache=cache, reporter=reporter)
    return compare_scores({name: {one.domain: one.scores for one in found} for name, found in scores.items()})


def evaluate_model(config: Config, reporter: Reporter | None = None) -> list[DomainScore]:
    """Scores the configuration's model on the held-out rows of its domains, without training."""
    (scores,) = evaluate_checkpoints(config, [None], reporter=reporter).values()
    return scores


def evaluate_checkpoints(
    config: Config,
    checkpoints: Sequence[str | Path | None],
    *,
    cache: Path | None = None,
    reporter: Reporter | None = None,
) -> dict[str, list[DomainScore]]:
    """The scores of checkpoints by a short name of each; see :func:`compare_checkpoints`.

    None stands for the configuration's own model. Each model is loaded after the one before is gone. All are given the
    same prompts and the same random stream. On several ranks each generates a part, and all return the same.
    """
    names = _names(config, checkpoints)
    reporter = reporter or Reporter()
    models = [model_of(config, checkpoint) for checkpoint in checkpoints]
    for model in models:
        check_model(model)
    evaluation = evaluation_of(config, models[0])
    found: dict[str, list[DomainScore]] = {}
    for name, model in zip(names, models, strict=True):
        file = None if cache is None else cache / f"{_slug(name)}-{evaluation.key(model)}.json"
        scores = evaluation.launch.share(lambda file=file: _kept(file))  # type: ignore[misc]
        if scores is None:
            scores = evaluation.make(name, model, reporter)
            if file is not None and evaluation.launch.first:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, {"checkpoint": model.path, "scores": [score.to_json() for score in scores]})
        found[name] = scores
    return found


@dataclass(frozen=True)
class Evaluation:
    """What every checkpoint is evaluated on, and how."""

    config: Config
    domains: tuple[Domain, ...]
    plan: EvaluationPlan
    device: Any
    launch: Launch

    def make(self, name: str, model: ModelConfig, reporter: Reporter) -> list[DomainScore]:
        """The scores of a checkpoint, in the order of the domains."""
        policy = load_model(model).to(self.device).eval()
        scores = evaluate(
            policy,
            load_tokenizer(with_tokenizer(model, self.config.model)),
            self.domains,
            self.plan,
            lambda domain, done, total: reporter.evaluating(name, domain, done, total),
            self.launch,
        )
        del policy
        free_memory()
        # As they are read back, so that a repeated call gives the same digits.
        return [of_plain(DomainScore, score.to_json()) for score in scores]

    def key(self, model: ModelConfig) -> str:
        """Changes with the checkpoint's files, the held-out rows, their rewards and the way they are sampled."""
        rows = {domain.name: [dict(row) for row in domain.evaluation] for domain in self.domains}
        rewards = {name: domain.model_dump(mode="json") for name, domain in self.config.domains.items()}
        settings = {
            "model": model.model_dump(mode="json", exclude={"path"}),
            "rows": rows,
            "domains": rewards,
            "plan": vars(self.plan),
        }
        text = json.dumps(settings, sort_keys=True, default=str)
        return hashlib.blake2b(f"{_fingerprint(model)}\n{text}".encode(), digest_size=8).hexdigest()


def evaluation_of(config: Config, model: ModelConfig) -> Evaluation:
    """The held-out rows of a configuration, read with the tokenizer of ``model``, and how they are sampled."""
    domains = load_domains(config, load_tokenizer(with_tokenizer(model, config.model)))
    longest = DomainGRPOConfig.__dataclass_fields__["max_completion_length"].default
    plan = EvaluationPlan.of_config(config, config.training.get("max_completion_length", longest))
    # The first rank scores while the others wait, however long it takes.
    state = PartialState(cpu=True) if uses_cpu(config) else PartialState(timeout=timedelta(days=1))
    return Evaluation(config, tuple(domains), plan, state.device, Launch.join())


def model_of(config: Config, checkpoint: str | Path | None) -> ModelConfig:
    """The configuration's model from another place; its own for None."""
    if checkpoint is None:
        return config.model
    return config.model.model_copy(update={"path": str(checkpoint), "revision": None, "lora": None})


def _names(config: Config, checkpoints: Sequence[str | Path | None]) -> list[str]:
    """Short names: ``step-60``, ``RUN/step-60`` of several runs, the whole path where that is not enough."""
    if not checkpoints:
        raise ConfigError("checkpoints: none is given. Give folders, hub ids or 'pocket'.")
    paths = [config.model.path if checkpoint is None else str(checkpoint) for checkpoint in checkpoints]
    given = [path.encode("utf-8", "replace").decode() for path in paths]  # a path may hold bytes that are no text
    if twice := next((path for path in given if given.count(path) > 1), None):
        raise ConfigError(f"checkpoints: {twice!r} is given twice. Give every checkpoint once.")
    last = [Path(path).name or path for path in given]
    runs = [f"{Path(path).parent.parent.name}/{name}" for path, name in zip(given, last, strict=True)]
    for names in (last, runs):
        if len(set(names)) == len(names):
            return names
    return given


def _kept(file: Path | None) -> list[DomainScore] | None:
    """The scores in a file; None where there is none, or not a whole one."""
    if file is None or not file.is_file():
        return None
    try:
        lines: list[Mapping[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["scores"]
        return [of_plain(DomainScore, line) for line in lines]
    except (ValueError, KeyError, TypeError, CounterpointError):
        return None


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60]


def _fingerprint(model: ModelConfig) -> str:
    """Of a folder's weights, settings and tokenizer byte by byte; of a hub id the commit."""
    folder = Path(resolve_path(model))
    if not folder.is_dir():
        try:
            return str(AutoConfig.from_pretrained(model.path, revision=model.revision)._commit_hash)
        except MODEL_FAULTS as error:
            raise ModelError(f"{model.path}: its configuration cannot be read: {error}") from error
    files = sorted(path for kind in ("*.safetensors", "*.json", "*.jinja") for path in folder.glob(kind))
    return " ".join(f"{path.name} {file_digest(path)}" for path in files)

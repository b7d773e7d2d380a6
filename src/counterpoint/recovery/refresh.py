"""Refresh: short reinforcement learning on a damaged domain that watches the others.

Source: "A Local Perturbation Theory ..." (arXiv 2606.02398): a short refresh brings back an earlier domain, because the
damage lies in a small shared subspace where its loss is curved. The stopping rules are ours, in ``engine/stages.py``.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from counterpoint.config import Config, load_config, parse_config
from counterpoint.diagnosis.subject import config_of, model_of, wanted_domains
from counterpoint.engine import Interrupted, Reporter, resume, train
from counterpoint.engine.evaluate import evaluate_checkpoints
from counterpoint.engine.prepare import check_config
from counterpoint.engine.stages import RefreshPlan, outcome
from counterpoint.errors import ConfigError, CounterpointError, DomainError, RunError
from counterpoint.evaluation.history import looks_of
from counterpoint.launch import Launch, rank_of_environment
from counterpoint.models import ADAPTER_CONFIG
from counterpoint.recovery import _words
from counterpoint.results import Result, of_plain
from counterpoint.runs import RunDirectory
from counterpoint.runs.run import Run
from counterpoint.stats import (
    MARGIN,
    Estimate,
    Former,
    Harm,
    Scores,
    Standing,
    difference_interval,
    mean_interval,
    standing,
)
from counterpoint.tables import Table

FILE = Path("recovery") / "refresh.json"
"""The result, in the run directory of a refresh."""

COOLER = 5
"""By how much the learning rate of a refresh is below that of the training, where none is given."""

DEFAULT_REPLAY = 0.5
"""Share of the other domains where some are protected and no share was given."""

Looks = Mapping[int, Mapping[str, Scores]]


@dataclass(frozen=True)
class RefreshOptions:
    """How a refresh is done.

    ``steps`` is the limit and ``every`` the steps between looks at all domains. ``learning_rate`` is a fifth of the
    configuration's where it is None: an empty Adam moves every weight by about the rate in its first steps.
    ``replay`` is the share of every step's prompts that comes from the other domains; ``protect`` names domains whose
    gradients the refresh gives way to (``mgs``), which needs replay (0.5 where none is given). ``former`` is the score
    to reach, where no checkpoint shows it. A score up to ``margin`` below another counts as the same. ``seed`` is the
    configuration's plus one where it is None, so that prompts come in another order than in the domain's own stage.
    """

    steps: int = 40
    every: int = 5
    learning_rate: float | None = None
    protect: tuple[str, ...] = ()
    replay: float | None = None
    seed: int | None = None
    former: float | None = None
    margin: float = MARGIN

    def __post_init__(self) -> None:
        for name in ("steps", "every"):
            if getattr(self, name) < 1:
                raise CounterpointError(f"{name} must be at least 1, found {getattr(self, name)}.")
        for name in ("learning_rate", "former", "margin"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise CounterpointError(f"{name} must be a finite number, found {value}.")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise CounterpointError(f"learning_rate must be above 0, found {self.learning_rate}.")
        if self.replay is not None and not 0 <= self.replay < 1:
            raise CounterpointError(
                f"replay is the share of prompts from the other domains: at least 0 and below 1, found {self.replay}."
            )

    @property
    def share_of_others(self) -> float:
        """The share of prompts from other domains: protected domains need some, or they have no gradient."""
        if self.protect and not self.replay:
            return DEFAULT_REPLAY
        return self.replay or 0.0


@dataclass(frozen=True)
class Look:
    """One evaluation of all domains, ``step`` steps after the start."""

    step: int
    scores: Mapping[str, Estimate]


@dataclass(frozen=True)
class Refresh(Result):
    """A refresh of ``domain`` from ``model``.

    ``stopped`` is ``recovered``, ``harmed`` (then ``harmed`` names the other domain), ``limit``, ``nothing`` (the
    domain was not damaged) or ``interrupted``. ``standing`` is what became of the domain, its interval valid for all
    planned looks at once; None where nothing was trained. ``changes`` are end minus start, paired by prompt, 95 %.
    """

    kind: ClassVar[str] = "refresh"
    model: str
    before: str | None
    domain: str
    run: str
    checkpoint: str | None
    options: RefreshOptions
    stopped: str
    harmed: str | None
    steps: int
    former: Estimate
    start: Mapping[str, Estimate]
    evaluations: tuple[Look, ...]
    changes: Mapping[str, Estimate]
    standing: Standing | None
    others: Mapping[str, Harm]
    seconds: float
    notes: tuple[str, ...] = field(default=())

    @property
    def nothing(self) -> bool:
        """Whether the domain was not damaged, so that nothing was trained."""
        return self.stopped == "nothing"

    def tables(self) -> list[Table]:
        """Every domain at the start and at the end."""
        last = self.evaluations[-1].scores
        forms = {"start": ".3f", "end": ".3f", "change": "+.3f"}
        rows = [(name, start, last[name], self.changes[name]) for name, start in self.start.items()]
        title = f"Refresh of {self.domain}, {self.steps} steps: held-out reward [95 %]"
        return [Table(title, ("domain", *forms), tuple(rows), forms)]

    def sentences(self) -> Sequence[str]:
        """What became of the domain and of the others, why it stopped, and where the checkpoint is."""
        now, was = self.evaluations[-1].scores[self.domain], _words.score(self.former)
        if self.nothing or self.standing is None:
            return (f"Nothing to recover: {self.domain} scores {_words.score(now)}; its former score is {was}.",)
        start = self.start[self.domain]
        said = [
            f"{self.domain} went from {start.value:.3f} to {now.value:.3f} in {self.steps} steps; its former score is "
            f"{was}. {_words.gained(self.domain, self.standing, self.options.margin)}.",
            _words.others(self.changes, self.others, self.options.margin),
            _STOPPED[self.stopped].format(self.harmed),
            *self.notes,
            f"Checkpoint: {self.checkpoint}" if self.checkpoint else "",
        ]
        return [sentence for sentence in said if sentence]


_STOPPED = {
    "recovered": "It stopped because the domain met the rule for being back; that look chose, so it flatters.",
    "harmed": "It stopped because {} fell.",
    "limit": "It stopped at the limit of steps.",
    "interrupted": "It was interrupted.",
}


def refresh(
    model: str | Path,
    domain: str,
    config: str | Path | Config,
    *,
    out: str | Path,
    before: str | Path | None = None,
    options: RefreshOptions | None = None,
    reporter: Reporter | None = None,
) -> Refresh:
    """Trains ``domain`` for a few steps from ``model`` until it is back, looking at all domains.

    ``out`` becomes a run directory with ``recovery/refresh.json``. The same call goes on with a refresh that was
    stopped or killed, and returns the result of one that is done.

    Args:
        model: the checkpoint whose domain is damaged.
        domain: the damaged domain.
        config: configuration or run directory that defines the domains and the training settings.
        out: the run directory to write.
        before: the checkpoint after the domain's own stage: its score is the former one. Where ``config`` is a run,
            its own evaluation is taken.
        options: steps, looks, protection, replay.
        reporter: hears of training and evaluations.

    Raises:
        CounterpointError: whatever makes it impossible, before training.
        Interrupted: the user stopped it; the result so far is written, and the same call goes on.
    """
    out, options = Path(out), options or RefreshOptions()
    is_run = not isinstance(config, Config) and (Path(config) / "run.json").is_file()
    run = Path(str(config)) if is_run else None
    config = config if isinstance(config, Config) else config_of(config)
    trained = refresh_config(config, str(model), domain, out, options)
    asked = {
        "model": _words.place(model),
        "domain": domain,
        "before": None if before is None else _words.place(before),
        **asdict(options),
        "protect": list(options.protect),
    }
    if (out / "run.json").is_file():
        _check_same(out, trained, asked)
        return continue_refresh(out, reporter)
    if out.exists() and (not out.is_dir() or any(item.name != ".lock" for item in out.iterdir())):
        raise RunError(f"{out}: is there already and holds no refresh; nothing is overwritten. Give another folder.")
    if problems := check_config(trained):
        raise ConfigError("\n".join(problems))
    former = _former(config, run, domain, None if before is None else str(before), options.former, reporter)
    return _work(out, trained, RefreshPlan(domain, former, options.every, asked, options.margin), reporter, start=True)


def continue_refresh(out: Path, reporter: Reporter | None = None) -> Refresh:
    """Goes on with the refresh in ``out``, or returns the result of one that is done; RunError where there is none."""
    config = load_config(RunDirectory.open(out, write=False).config_path)
    return _work(out, config, _stored_plan(out), reporter, start=False)


def _work(out: Path, config: Config, plan: RefreshPlan, reporter: Reporter | None, *, start: bool) -> Refresh:
    """Trains, or goes on, and writes the result."""
    began = time.perf_counter()
    try:
        if start:
            train(config, out.name, reporter, refresh=plan)
        else:
            resume(out, reporter)
    except Interrupted:
        run = RunDirectory(out)
        if not rank_of_environment() and 0 in looks_of(run, run.state["domains"]):
            _words.write(out / FILE, _result(out, plan, began))
        raise
    Launch.join().wait()
    found = _result(out, plan, began)
    if not rank_of_environment():
        _words.write(out / FILE, found)
    return found


def _stored_plan(out: Path) -> RefreshPlan:
    stored = RunDirectory.open(out, write=False).state.get("refresh")
    if stored is None:
        raise RunError(f"{out}: holds a run that is no refresh, and nothing is overwritten. Give another folder.")
    return RefreshPlan.from_json(stored)


def _check_same(out: Path, config: Config, asked: Mapping[str, Any]) -> None:
    """Refuses to go on with a refresh that was started with other settings."""
    plan = _stored_plan(out)
    for key, value in asked.items():
        if plan.options.get(key, value) != value:
            raise _words.TakenError(
                f"{out}: holds a refresh that was started with {key}={plan.options[key]}, and {value} is asked for. "
                "Repeat the first command to go on with it, or give another folder."
            )
    kept = load_config(RunDirectory.open(out, write=False).config_path)
    ours, theirs = (one.model_dump(exclude={"run": {"dir"}}) for one in (config, kept))
    changed = [key for key in ours if ours[key] != theirs[key]]
    if changed:
        raise _words.TakenError(
            f"{out}: holds a refresh that was started with another configuration ({', '.join(changed)} differ). Give "
            "the same one to go on with it, or another folder."
        )


# What is trained


def refresh_config(config: Config, model: str, domain: str, out: Path, options: RefreshOptions) -> Config:
    """What is trained: ``domain`` from ``model``, alone or with a share of the others, into the run ``out``.

    All domains stay, because all are evaluated. Without replay the strategy is ``sequential`` with one stage; with it
    the others divide their share evenly, under ``share_rule: carry``.
    """
    wanted_domains(config, [domain, *options.protect])
    data = config.model_dump(mode="json")
    others = [name for name in config.domains if name != domain]
    if domain in options.protect:
        raise ConfigError(f"protect names {domain!r}, the domain that is refreshed. Name others, or none.")
    if options.share_of_others and not others:
        raise DomainError(f"replay needs other domains, and the configuration has only {domain!r}. Leave replay out.")
    data["model"] = _model(config, model)
    rate = options.learning_rate or _training_rate(config) / COOLER
    data["training"] |= {"max_steps": options.steps, "learning_rate": rate}
    data["recovery"] = {}
    data |= {"schedule": [], "curriculum": None}
    data["evaluation"] |= {"before": True, "every": None}
    seed = config.run.seed + 1 if options.seed is None else options.seed
    keep = None if config.run.keep is None else max(2, config.run.keep)
    data["run"] |= {"dir": str(out.parent), "name": out.name, "seed": seed, "save_every": options.every, "keep": keep}
    if share := options.share_of_others:
        name = "mgs" if options.protect else "mixed"
        data |= {"strategy": {"name": name, "protect": list(options.protect)}, "share_rule": "carry"}
        for other in others:  # as whole multiples, so that fractions of the batch stay simple
            data["domains"][other]["share"] = share
        data["domains"][domain]["share"] = (1 - share) * len(others)
    else:
        data["strategy"] = {"name": "sequential", "order": [domain], "steps": options.steps}
    return parse_config(data, like=config)


def _training_rate(config: Config) -> float:
    from trl import GRPOConfig

    usual = next(one.default for one in fields(GRPOConfig) if one.name == "learning_rate")
    return float(config.training.get("learning_rate", usual))


def _model(config: Config, model: str) -> dict[str, Any]:
    """The checkpoint that is refreshed; adapters of its own are trained on, else those of the configuration if any."""
    chosen = model_of(config, model).model_dump(mode="json")
    if Path(model).exists():
        chosen["path"] = str(Path(model).resolve())
    if config.model.lora is not None and not (Path(chosen["path"]) / ADAPTER_CONFIG).is_file():
        chosen["lora"] = config.model.lora.model_dump(mode="json")
    return chosen


# What the domain scored when it was good


def _former(
    config: Config,
    run: Path | None,
    domain: str,
    before: str | None,
    number: float | None,
    reporter: Reporter | None = None,
) -> Former:
    """``number`` where it is given, else what ``before`` scores on the held-out rows, else what ``run`` recorded."""
    if number is not None:
        return Former.of_number(number)
    if before is not None:
        only = config.model_copy(update={"domains": {domain: config.domains[domain]}})
        ((score,),) = evaluate_checkpoints(only, [model_of(config, before).path], reporter=reporter).values()
        return Former.of_scores(score.scores)
    if run is None:
        raise CounterpointError(
            f"What did {domain} score before it fell? Give the checkpoint after its own stage as before, the score "
            "itself as former, or the run that trained it as config."
        )
    scores = Run.open(run).former(domain)
    if scores is None:
        raise RunError(
            f"{run}: no stage that trained {domain} has ended with an evaluation, so its former score is not known. "
            "Give the checkpoint after its own stage as before, or the score as former."
        )
    return Former.of_scores(scores)


# From the run to the result


def _result(out: Path, plan: RefreshPlan, began: float) -> Refresh:
    """What the run in ``out`` came to so far."""
    run = RunDirectory(out)
    looks = looks_of(run, run.state["domains"])
    asked, domain, former = plan.options, plan.domain, plan.former
    options = of_plain(RefreshOptions, asked)
    done = run.state["status"] == "done"
    stopped, harmed = outcome(plan, looks, 0, max(looks), options.steps) if done else ("interrupted", None)
    first, last = looks[0], looks[max(looks)]
    changes = {name: difference_interval(first[name], last[name]) for name in first}
    kept = run.checkpoints()
    step, checkpoint = kept[-1] if kept else (0, None)
    looked, trained = plan.looks(options.steps), len(looks) > 1
    return Refresh(
        model=asked["model"],
        before=asked.get("before", asked.get("reference")),
        domain=domain,
        run=str(out),
        checkpoint=None if checkpoint is None else str(checkpoint),
        options=options,
        stopped=stopped,
        harmed=harmed,
        steps=step,
        former=Estimate(former.mean, former.low, former.high),
        start=_means(first),
        evaluations=tuple(Look(step, _means(scores)) for step, scores in looks.items()),
        changes=changes,
        standing=standing(former.mean, first[domain], last[domain], looks=looked, margin=plan.margin)
        if trained
        else None,
        others=_words.harms(changes, domain, plan.margin) if trained else {},
        seconds=time.perf_counter() - began,
        notes=tuple(_notes(run, domain, looks, stopped)),
    )


def _means(scores: Mapping[str, Scores]) -> dict[str, Estimate]:
    return {name: mean_interval(values) for name, values in scores.items()}


def _notes(run: RunDirectory, domain: str, looks: Looks, stopped: str) -> list[str]:
    """What to do next."""
    notes = []
    if len(looks) > 1 and difference_interval(looks[min(looks)][domain], looks[max(looks)][domain]).high < 0:
        notes.append(f"{domain} fell further: try a lower learning_rate.")
    steps = [step for step in looks if 0 < step < max(looks)]
    if stopped == "harmed" and steps and (folder := run.checkpoint_path(steps[-1])).is_dir():
        notes.append(f"The checkpoint before the harm is {folder}.")
    return notes

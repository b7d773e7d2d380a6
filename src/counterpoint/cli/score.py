"""``counterpoint score``: rewards for completions in a file, without any model."""

import asyncio
import inspect
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from counterpoint.cli._console import ConsoleReporter
from counterpoint.disk import write_text
from counterpoint.errors import RewardError
from counterpoint.inputs import kind_of, parse_json, reading
from counterpoint.masking import is_secret_name, remember

if TYPE_CHECKING:
    from counterpoint.tables import Table

_CHUNK = 128
_NOTHING = "Nothing scored."


def score(
    reward: Annotated[
        str,
        typer.Argument(help="Name of a reward (math, code, choice, ...) or package.module:object.", metavar="REWARD"),
    ],
    source: Annotated[
        str,
        typer.Argument(
            help="Rows, one JSON object a line, with 'completion' and the reward's columns; - is standard input. Or a "
            "run, for its samples.",
            metavar="IN.jsonl|RUN",
        ),
    ],
    target: Annotated[
        str | None,
        typer.Argument(
            help="Where the rows go with 'reward' added; - is standard output. Without it only the mean is told.",
            metavar="OUT.jsonl",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", help="An option of the reward, as name=value; repeatable.", metavar="NAME=VALUE"
        ),
    ] = None,
    repeat: Annotated[
        int,
        typer.Option("--repeat", help="Score everything so often, and say how much the reward disagrees.", min=1),
    ] = 1,
    domain: Annotated[str | None, typer.Option(help="Only the rows of this domain.", metavar="NAME")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.jsonl if it is there.")] = False,
) -> None:
    """Score completions in a JSONL file with a reward.

    Each output line repeats its input line with "reward" added, in the same order.

    With --repeat every completion is scored so often: "reward" is the mean, "rewards" are all, and a table tells how
    much the reward, a judge say, disagrees with itself. An option "cache" is then set aside.

    With a run and --domain, the options are those that the run gives this reward in the domain; --option changes them.

    Examples:

        counterpoint score math answers.jsonl scored.jsonl --option extraction=boxed

        counterpoint score judge runs/mixed --domain chat --repeat 5
    """
    from counterpoint.rewards import build_reward

    options = _own_options(reward, source, domain) | parse_options(option or [])
    function = build_reward(reward, **(options | ({"cache": None} if repeat > 1 and "cache" in options else {})))
    _check_target(source, target, force)
    rows = _of_domain(_samples(source) if kind_of(source) == "folder" else read_rows(source), domain)
    _check_rows(function, rows, source)
    scores: list[tuple[float | None, ...]] = []
    size = len(rows) if getattr(function, "whole_batch", False) else _CHUNK
    with ConsoleReporter(Console(stderr=True)) as reporter:
        for start in range(0, len(rows), size or _CHUNK):
            chunk = rows[start : start + size]
            where = f"{source} lines {start + 1} to {start + len(chunk)}"
            scores += zip(*(_score_chunk(function, chunk, where) for _ in range(repeat)), strict=True)
            if reporter.console.is_terminal:
                reporter.working("scoring", len(scores), len(rows))
    text = "".join(_dump(row | _mean_of(calls)) + "\n" for row, calls in zip(rows, scores, strict=True))
    if target == "-":
        sys.stdout.write(text)
    elif target is not None:
        write_text(Path(target), text)
    _tell(rows, scores, target)


def _samples(run: str) -> list[dict[str, Any]]:
    """The samples of a run as rows: ``answer`` is the row's own, ``run_reward`` what the run gave."""
    from counterpoint.runs.run import Run

    renamed = {"reference": "answer", "reward": "run_reward"}
    rows = [{renamed.get(key, key): value for key, value in line.items()} for line in Run.open(run).samples]
    if not rows:
        raise RewardError(f"{run} has no samples: its evaluations write them (run.samples). {_NOTHING}")
    return rows


def _own_options(reward: str, source: str, domain: str | None) -> dict[str, Any]:
    """What the run ``source`` has as options of this reward in ``domain``; nothing for a file or another reward."""
    if domain is None or kind_of(source) != "folder":
        return {}
    from counterpoint.config import load_config
    from counterpoint.runs import RunDirectory

    domains = load_config(RunDirectory.open(Path(source), write=False).config_path).domains
    given = (*domains[domain].reward, *domains[domain].metrics) if domain in domains else ()
    return next((dict(one.options) for one in given if one.name == reward), {})


def _of_domain(rows: list[dict[str, Any]], domain: str | None) -> list[dict[str, Any]]:
    if domain is None:
        return rows
    found = [row for row in rows if row.get("domain") == domain]
    if not found:
        known = sorted({str(row["domain"]) for row in rows if "domain" in row})
        raise RewardError(f"--domain {domain}: no row is of it; the rows have {', '.join(known) or 'none'}. {_NOTHING}")
    return found


def _mean_of(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    mean = {"reward": statistics.fmean(known) if known else None}
    return mean | ({"rewards": list(values)} if len(values) > 1 else {})


def _tell(rows: list[dict[str, Any]], scores: Sequence[Sequence[float | None]], target: str | None) -> None:
    means = [mean for calls in scores if (mean := _mean_of(calls)["reward"]) is not None]
    mean = f"mean reward {statistics.fmean(means):.4f}" if means else "no rewards"
    where = "" if target in (None, "-") else f", written to {target}"
    typer.echo(f"{len(rows)} rows, {mean}{where}", err=target == "-")
    if means and len(scores[0]) > 1:
        Console(stderr=target == "-").print(_repeats_table(rows, scores))


def _repeats_table(rows: list[dict[str, Any]], scores: Sequence[Sequence[float | None]]) -> "Table":
    from counterpoint.rewards.repeats import repeated
    from counterpoint.tables import Table

    domains = list(dict.fromkeys(str(row["domain"]) for row in rows if row.get("domain") is not None))
    groups = {name: [i for i, row in enumerate(rows) if row.get("domain") == name] for name in domains}
    if len(groups) != 1:
        groups["all"] = list(range(len(rows)))
    prompts = [i if row.get("prompt") is None else _dump({"prompt": row["prompt"]}) for i, row in enumerate(rows)]
    table = []
    for name, places in groups.items():
        told = repeated([scores[i] for i in places], [prompts[i] for i in places])
        mean = None if told.mean is None else told.mean.value
        table.append((name, told.completions, mean, told.agreement, told.variance))
    failed = sum(call is None for calls in scores for call in calls)
    note = (
        f"{failed:,} calls gave no score. agreement: how often two calls for one completion give the same score. "
        "variance: of one call around its completion's mean; judging alone moves the mean of n completions by about "
        "sqrt(variance / n)."
    )
    columns = ("domain", "n", "mean", "agreement", "variance")
    return Table(
        f"{len(scores[0])} calls for every of n completions [95 % interval over prompts]",
        columns,
        tuple(table),
        {"mean": ".3f", "agreement": ".3f", "variance": ".4f"},
        note,
    )


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """``["fraction=true", "mode=all"]`` as ``{"fraction": True, "mode": "all"}``: JSON values, or else texts."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise RewardError(f"--option must be NAME=VALUE, found {pair!r}.")
        try:
            options[name] = json.loads(value)
        except (ValueError, RecursionError):
            options[name] = value
        if is_secret_name(name) and isinstance(options[name], str):
            remember(options[name], name, secret=True)
    return options


def read_rows(source: str) -> list[dict[str, Any]]:
    """All rows of a JSONL file. Raises ``RewardError`` naming file and line of the first that is no JSON object."""
    if source != "-" and kind_of(source) != "file":
        found = kind_of(source)
        reason = f"it is a {found}" if found else "there is no such file"
        raise RewardError(f"{source} cannot be read: {reason}. Name a file, or - for what is piped in.")
    with reading(source, RewardError, _NOTHING):
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    rows = []
    # Not splitlines(): JSON texts may hold other line separators than the newline.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        row = parse_json(line, f"{source} line {number}", RewardError, _NOTHING)
        if not isinstance(row, dict):
            raise RewardError(f"{source} line {number} must be a JSON object, found {line[:60]!r}. Nothing scored.")
        rows.append(row)
    return rows


def _check_target(source: str, target: str | None, force: bool) -> None:
    if target in (None, "-"):
        return
    path = Path(target)
    there = kind_of(path)
    if source != "-" and there and path.samefile(source):
        raise RewardError(f"{target} is the input file; it is never overwritten. Name another output file.")
    if there and not force:
        raise RewardError(f"{target} is there already. Name another file, or replace it with --force.")
    if there not in (None, "file"):
        raise RewardError(f"{target} is a {there}. Name a file.")
    if kind_of(path.parent) != "folder":
        raise RewardError(f"{target} cannot be written: there is no directory {path.parent}. Make it first.")


def _check_rows(function: Callable[..., Any], rows: list[dict[str, Any]], source: str) -> None:
    check = getattr(function, "check_rows", None)
    for number, row in enumerate(rows, start=1):
        if "completion" not in row:
            present = ", ".join(sorted(row)) or "nothing"
            raise RewardError(f"{source} line {number} has no 'completion'; it has {present}. Nothing scored.")
        completion = row["completion"]
        is_chat = isinstance(completion, list) and all(isinstance(message, dict) for message in completion)
        if completion is not None and not isinstance(completion, str) and not is_chat:
            found = repr(completion)[:60]
            raise RewardError(f"{source} line {number}: 'completion' must be a text, found {found}. Nothing scored.")
        problems = check([row]) if check else []
        if problems:
            raise RewardError(f"{source} line {number}: {problems[0].removeprefix('row 0: ')} Nothing scored.")


def _score_chunk(function: Callable[..., Any], rows: list[dict[str, Any]], where: str) -> list[float | None]:
    names = dict.fromkeys(name for row in rows for name in row if name not in ("completion", "prompts", "completions"))
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names}
    if all("prompt" in row for row in rows):
        columns["prompts"] = columns["prompt"]
    completions = ["" if row["completion"] is None else row["completion"] for row in rows]
    from counterpoint.rewards.values import FAILED_MARK, Blame, numbers_of

    with Blame(f"{where}: the reward", ". Nothing scored."):
        values = function(completions=completions, **columns)
        if inspect.iscoroutine(values):
            values = asyncio.run(values)
        found = numbers_of(values, len(rows), f"{where}: the reward", lambda index: f"row {index + 1} of these")
        return [None if value == FAILED_MARK else value for value in found]


def _dump(row: dict[str, Any]) -> str:
    # Readers that split at any line separator, or cannot hold half a surrogate pair, get these as escapes.
    text = json.dumps(row, ensure_ascii=False)
    return re.sub("[\x85\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)

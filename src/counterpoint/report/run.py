"""The page on a run: its content from the files, and all its figures."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from counterpoint.masking import masked_command, masked_names
from counterpoint.report.cosines import layer_figure, module_cosines, overview_figure, steps_figure
from counterpoint.report.curves import domain_curves, surgery_curves
from counterpoint.report.diagnosis import diagnosis, diagnosis_figures
from counterpoint.report.plots import (
    NUM_COLOURS,
    Figure,
    Trace,
    axis,
    comparison_figure,
    curve_figure,
    dots,
    history_figure,
    score_range,
    with_reference,
)
from counterpoint.report.read import LEVELS, Detail, RunData
from counterpoint.report.recovery import recovery, recovery_figures
from counterpoint.report.scores import comparison, evaluation, labels_of_runs
from counterpoint.report.text import clean, number, plot_text, row_of, rows_of, signed
from counterpoint.report.weights import weights, weights_figure
from counterpoint.runs.run import total_tokens

Sample = dict[str, Any]

STATUS = {
    "running": "still running, or killed before it could say so",
    "done": "finished",
    "interrupted": "interrupted",
    "failed": "failed",
}


def build(runs: Sequence[RunData], detail: Detail = LEVELS[0]) -> dict[str, Any]:
    """The content of the report on ``runs[0]``, compared with the others, as plain JSON values with cleaned texts."""
    run = runs[0]
    names = domain_names(run)
    domains = names[: detail.domains]
    notes = [note for other in runs for note in _notes(other, runs)]
    if len(names) > len(domains):
        notes.append(f"{len(names) - len(domains)} of {len(names)} domains are left out to keep the page readable.")
    compared, same_start = comparison(runs, domains) or (None, True)
    return {
        "run": overview(run, domains),
        "evaluation": evaluation(runs, domains),
        "comparison": compared,
        "same_start": same_start,
        "labels": labels_of_runs(runs),
        "diagnosis": diagnosis(run.diagnosis, domains, detail),
        "recovery": recovery(run, domains, detail),
        "curves": _curves(runs, domains, detail),
        "weights": weights(run, domains),
        "surgery": surgery_curves(run, domains, detail),
        "cosines": module_cosines(run.grams, detail),
        "samples": samples(run, domains, detail),
        "configuration": clean(masked_names(run.config_text), 40_000),
        "environment": {clean(key, 60): clean(_plain(value), 2000) for key, value in _facts(run).items()},
        "notes": notes,
    }


def _curves(runs: Sequence[RunData], domains: list[str], detail: Detail) -> list[dict[str, Any]]:
    """The panels of the first run; those of the others, metric by metric, under ``others``."""
    own, *others = [domain_curves(run, domains, detail) for run in runs]
    found = [{panel["metric"]: panel["curves"] for panel in panels} for panels in others]
    return [panel | {"others": [curves.get(panel["metric"], []) for curves in found]} for panel in own]


def _notes(run: RunData, runs: Sequence[RunData]) -> list[str]:
    return [f"{run.name}: {note}" if len(runs) > 1 else note for note in run.notes]


def _facts(run: RunData) -> dict[str, Any]:
    command = run.environment.get("command")
    shown = masked_command([str(part) for part in command]) if isinstance(command, list) else command
    return {**run.environment, "command": shown} if "command" in run.environment else run.environment


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def domain_names(run: RunData) -> list[str]:
    """The run's domains as their files spell them, in the order of the configuration where one is readable."""
    configured = run.config.get("domains")
    listed = run.info.get("domains")
    names: list[str] = [str(name) for name in configured] if isinstance(configured, dict) else []
    if isinstance(listed, list):
        # run.json is the authority on which domains took part, the configuration on their order.
        known = [str(name) for name in listed]
        names = [name for name in names if name in known] + [name for name in known if name not in names]
    if not names:
        names = [str(row["domain"]) for row in (*run.evals, *run.samples) if row.get("domain") is not None]
    return list(dict.fromkeys(names))


def overview(run: RunData, domains: list[str]) -> dict[str, Any]:
    """The facts at the head of the page, every text cleaned."""
    status = str(run.info.get("status", "unknown"))
    steps = [number(row.get("step")) for row in run.metrics]
    last_step = max((int(step) for step in steps if step is not None), default=None)
    planned = number(run.info.get("steps")) or 0
    return {
        "name": run.name,
        "model": _model(run.config),
        "strategy": clean(_strategy(run), 120),
        "domains": [
            {"domain": clean(name, 60), "share": share}
            for name, share in zip(domains, _shares(run.config, domains), strict=True)
        ],
        "steps": last_step,
        "planned_steps": int(planned) if planned > (last_step or 0) else None,
        "status": clean(status, 40),
        "no_signal": clean(run.info.get("no_signal") or "", 1000),
        "status_words": STATUS.get(status, "status unknown"),
        "started": _moment(run.info.get("started")),
        "ended": _moment(run.info.get("ended")),
        "seconds": _elapsed(run),
        "step_seconds": _median(run, "step_seconds", "step_time"),
        "tokens": _tokens(run),
        "completions": _completions(run, last_step),
        "stages": _stages(run),
    }


def _model(config: dict[str, Any]) -> str:
    model = config.get("model")
    if isinstance(model, dict):
        model = next((model[key] for key in ("name", "path", "id") if model.get(key)), None)
    return clean(model, 120) or "unknown model"


def _strategy(run: RunData) -> str:
    strategy = run.info.get("strategy") or run.config.get("strategy")
    if isinstance(strategy, dict):
        strategy = ", ".join(f"{key}: {value}" for key, value in strategy.items())
    balance = row_of(run.config.get("balance")).get("name", "none")
    return f"{strategy or 'unknown strategy'}{'' if balance == 'none' else f', balance {balance}'}"


def _shares(config: dict[str, Any], domains: list[str]) -> list[float | None]:
    """Every domain's fraction of a step's prompts; None for all when the configuration does not say."""
    configured = config.get("domains")
    if not isinstance(configured, dict) or not all(isinstance(configured.get(name), dict) for name in domains):
        return [None] * len(domains)
    raw = [number(configured[name].get("share", 1.0)) for name in domains]
    known = [share for share in raw if share is not None and share >= 0]
    if len(known) < len(raw) or sum(known) <= 0:
        return [None] * len(domains)
    return [share / sum(known) for share in known]


def _stages(run: RunData) -> list[dict[str, Any]]:
    stages = run.info.get("stages")
    found = []
    for row in stages if isinstance(stages, list) else []:
        if isinstance(row, dict):
            domains = row.get("domains") or row.get("domain")
            names = ", ".join(map(str, domains)) if isinstance(domains, list) else domains
            steps = {key: number(row.get(key)) for key in ("first_step", "last_step")}
            members = [clean(name, 60) for name in domains] if isinstance(domains, list) else [clean(domains, 60)]
            kind = clean(row.get("kind") or "train", 20)
            found.append({"domain": clean(names, 60), "domains": members, "kind": kind, **steps})
    return found


def _seconds(value: object) -> float | None:
    """A moment as Unix seconds: given as such, or in ISO 8601 (without an offset: UTC)."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return number(value)


def _moment(value: object) -> str | None:
    seconds = _seconds(value)
    if seconds is None or not 0 <= seconds < 1e11:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _elapsed(run: RunData) -> float | None:
    started, ended = _seconds(run.info.get("started")), _seconds(run.info.get("ended"))
    times = [time for row in run.metrics if (time := number(row.get("time"))) is not None]
    ended = ended if ended is not None else max(times, default=None)
    if started is None or ended is None:
        return None
    return ended - started


def _tokens(run: RunData) -> float | None:
    """Prompt and completion tokens of all stages."""
    counts = [(number(row.get("stage")), number(row.get("num_tokens"))) for row in run.metrics]
    stages = rows_of(run.info.get("stages"))
    return total_tokens(counts, [(stage.get("kind"), number(stage.get("taken"))) for stage in stages])


def _completions(run: RunData, steps: int | None) -> int | None:
    """Completions that the steps learned from; None where the configuration does not say how many a step has."""
    training = row_of(run.config.get("training"))
    size, updates = number(training.get("per_device_train_batch_size")), number(training.get("num_iterations", 1))
    micro_batches, ranks = number(training.get("gradient_accumulation_steps", 1)), number(run.environment.get("ranks"))
    if not (steps and size and updates and micro_batches):
        return None
    return round(min(steps * size * micro_batches * (ranks or 1) / updates, 1e15))


def _values(run: RunData, *keys: str) -> list[float]:
    """The numbers logged under the first of ``keys`` that a step has."""
    found = (number(next((row[key] for key in keys if key in row), None)) for row in run.metrics)
    return [value for value in found if value is not None]


def _median(run: RunData, *keys: str) -> float | None:
    values = _values(run, *keys)
    return float(np.median(values)) if values else None


def samples(run: RunData, domains: list[str], detail: Detail) -> list[dict[str, Any]]:
    """Per domain the first prompts of ``samples.jsonl``, those with both a before and a later completion first.

    Nothing is selected by score: a page that showed the best completions would flatter every run.
    """
    return [
        {"domain": clean(name, 60), "colour": index % 8, "samples": found}
        for index, name in enumerate(domains)
        if (found := _of_domain(run, name, detail))
    ]


def _of_domain(run: RunData, domain: str, detail: Detail) -> list[Sample]:
    by_prompt: dict[str, Sample] = {}
    for row in run.samples:
        if str(row.get("domain")) != domain:
            continue
        prompt = _flat(row.get("prompt"))
        sample = by_prompt.setdefault(prompt, {"prompt": clean(prompt, detail.characters), "reference": None})
        if row.get("reference") is not None:
            sample["reference"] = clean(_flat(row["reference"]), 400)
        before = row.get("when") == "before"
        # The first completion before, the last one after: the whole distance the run went.
        if not before or "before" not in sample:
            sample["before" if before else "after"] = {
                "step": int(number(row.get("step")) or 0),
                "completion": clean(_flat(row.get("completion")), detail.characters),
                "reward": number(row.get("reward")),
            }
    both_first = sorted(by_prompt.values(), key=lambda sample: not ("before" in sample and "after" in sample))
    return [{"before": None, "after": None, **sample, "gain": _gain(sample)} for sample in both_first[: detail.samples]]


def _gain(sample: Sample) -> float | None:
    """Reward after minus reward before; None where one of them is unknown."""
    before, after = ((sample.get(when) or {}).get("reward") for when in ("before", "after"))
    return None if before is None or after is None else after - before


def _flat(value: object) -> str:
    """The text of a prompt, a completion or a reference, given as text or as messages."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return "\n".join(f"{part.get('role', '')}: {part.get('content', '')}" for part in value)
    return "" if value is None else value if isinstance(value, str) else str(value)


ROW_HEIGHT = 52
"""Pixels for a domain."""


def run_figures(content: dict[str, Any]) -> dict[str, Figure]:
    """All figures of the page by their id; a figure without data is left out."""
    stages = content["run"]["stages"]
    found: dict[str, Figure] = {}
    picture = overview_picture(content["run"], content["evaluation"]["rows"])
    if picture:
        found["overview"] = picture
    if content["comparison"]:
        found["comparison"] = comparison_figure(content["comparison"])
    over_time = content["evaluation"]["over_time"]
    if max((len(domain["scores"]) for domain in over_time), default=0) > 2:
        found["history"] = history_figure(over_time, stages, content["evaluation"]["others"])
    if content["diagnosis"]:
        found |= diagnosis_figures(content["diagnosis"])
    if content["recovery"]:
        found |= recovery_figures(content["recovery"])
    if content["weights"]:
        found["weights"] = weights_figure(content["weights"])
    for panel in content["curves"]:
        found[f"curve-{panel['metric']}"] = curve_figure(panel["curves"], stages, others=panel["others"])
    return found | _surgery_figures(content, stages)


def _surgery_figures(content: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Figure]:
    surgery, cosines = content["surgery"], content["cosines"]
    found: dict[str, Figure] = {}
    if surgery["conflict_rate"]["step"]:
        found["conflict-rate"] = with_reference(curve_figure([surgery["conflict_rate"]], stages, "p"), 0.5)
    if surgery["removed"]["step"]:
        found["removed"] = curve_figure([surgery["removed"]], stages, "p")
    if surgery["cosine"]:
        found["cosine"] = with_reference(curve_figure(surgery["cosine"], stages, "p", legend=True), 0.0)
    if cosines:
        found["module-overview"] = overview_figure(cosines)
        found["module-steps"] = steps_figure(cosines)
        by_layer = layer_figure(cosines)
        if by_layer:
            found["module-time"] = by_layer
    return found


def overview_picture(run: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Figure | None:
    """Left, each domain's training as bars over the steps, as thick as its share; right, its score before and after.

    Below each other where the page is narrow. ``rows`` are those of ``evaluation``. None where nothing was recorded.
    """
    bars = _bars(run)
    scores = _scores(rows, "2" if bars else "")
    if not bars and not scores:
        return None
    yaxis = {
        "tickvals": list(range(len(rows))), "ticktext": [plot_text(row["domain"], 24) for row in rows],
        "range": [len(rows) - 0.5, -0.5], "showgrid": False, "fixedrange": True, "ticks": "",
        "tickfont": {"size": 14, "color": "@ink"},
    }  # fmt: skip
    training = {**axis("optimizer step"), "rangemode": "tozero"}
    held_out = {**axis("held-out score"), **score_range(scores)}
    figure: Figure = {"data": [*bars, *scores], "height": 80 + ROW_HEIGHT * len(rows)}
    layout: dict[str, Any] = {"barmode": "overlay", "showlegend": False, "yaxis": yaxis}
    if scores:
        layout |= {"annotations": _changes(rows, "y2" if bars else "y"), "margin": {"l": 8, "r": 64, "t": 10, "b": 8}}
    if bars and scores:
        layout["xaxis"] = training | {"domain": [0, 0.36]}
        layout["xaxis2"] = held_out | {"domain": [0.41, 1], "anchor": "y2"}
        layout["yaxis2"] = yaxis | {"anchor": "x2", "showticklabels": False}
        return figure | {"layout": layout, "narrow": _stacked(len(rows))}
    return figure | {"layout": layout | {"xaxis": training if bars else held_out}}


def _stacked(count: int) -> dict[str, Any]:
    """What changes where the page is narrow: the scores above, the training below."""
    top, bottom = ROW_HEIGHT * count, 30 * count
    total = top + bottom + 130
    return {
        "height": total,
        "layout": {
            "xaxis": {"domain": [0, 1]},
            "xaxis2": {"domain": [0, 1]},
            "yaxis": {"domain": [0, bottom / (total - 40)]},
            "yaxis2": {"domain": [1 - top / (total - 40), 1], "showticklabels": True},
        },
    }


def _bars(run: dict[str, Any]) -> list[Trace]:
    """One trace per domain: a bar for each of its stages, or for the whole run where there are none."""
    last = run["steps"]
    if not last:
        return []
    shares = [item["share"] for item in run["domains"]]
    largest = max([share for share in shares if share is not None], default=None)
    data: list[Trace] = []
    for index, (item, share) in enumerate(zip(run["domains"], shares, strict=True)):
        spans = _spans(run, item["domain"])
        staged = _is_staged(run)
        thick = 0.5 if staged or not largest or share is None else max(0.06, 0.5 * share / largest)
        text = "" if staged or share is None else f"{100 * share:.0f} %"
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": plot_text(item["domain"]),
                "base": [first for first, _, _ in spans],
                "x": [end - first for first, end, _ in spans],
                "y": [index] * len(spans),
                "width": thick,
                "text": [text] * len(spans),
                "customdata": [
                    [first + 1, end, "" if kind == "train" else f", {plot_text(kind)}"] for first, end, kind in spans
                ],
                "textposition": "inside",
                "insidetextanchor": "start",
                "constraintext": "none",
                "textangle": 0,
                "textfont": {"color": "@surface", "size": 12},
                "marker": {
                    "color": f"@d{index % NUM_COLOURS}",
                    "opacity": [1.0 if kind == "train" else 0.5 for _, _, kind in spans],
                },
                "hovertemplate": "steps %{customdata[0]} to %{customdata[1]}%{customdata[2]}"
                "<extra>%{fullData.name}</extra>",
            }
        )
    return data


def _is_staged(run: dict[str, Any]) -> bool:
    """Whether not all domains were trained all the time: several stages, or one that left domains out, as a refresh."""
    named = {item["domain"] for item in run["domains"]}
    return len(run["stages"]) > 1 or any(not named <= set(stage["domains"]) for stage in run["stages"])


def _spans(run: dict[str, Any], domain: str) -> list[tuple[float, float, str]]:
    """First and last step and kind of every stage that trained the domain, as far as the run has come."""
    if not _is_staged(run):
        return [(0.0, run["steps"], "train")]
    spans = [
        (stage["first_step"], min(stage["last_step"] or run["steps"], run["steps"]), stage["kind"])
        for stage in run["stages"]
        if domain in stage["domains"] and stage["first_step"] is not None
    ]
    return [span for span in spans if span[1] > span[0]]


def _scores(rows: Sequence[dict[str, Any]], axes: str) -> list[Trace]:
    """Every domain's score before (ring) and after (dot) with intervals, on the axes of that number."""
    data: list[Trace] = []
    for index, row in enumerate(rows):
        colour = f"@d{index % NUM_COLOURS}"
        if row["before"] and row["after"]:
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [row["before"]["mean"], row["after"]["mean"]],
                    "y": [index - 0.12, index + 0.12],
                    "line": {"color": "@faint", "width": 1.5},
                    "hoverinfo": "skip",
                }
            )
        for when, offset, symbol in (("before", -0.12, "circle-open"), ("after", 0.12, "circle")):
            if row[when]:
                data.append(dots([row[when]], [index + offset], f"{plot_text(row['domain'])}, {when}", colour, symbol))
    return [trace | {"xaxis": f"x{axes}", "yaxis": f"y{axes}"} for trace in data]


def _changes(rows: Sequence[dict[str, Any]], yref: str) -> list[dict[str, Any]]:
    """The change of every score at the right edge."""
    return [
        {
            "text": signed(row["change"]), "xref": "paper", "x": 1, "xanchor": "left", "xshift": 12, "yref": yref,
            "y": index, "showarrow": False, "font": {"size": 14, "color": "@ink"},
        }
        for index, row in enumerate(rows)
        if row["change"] is not None
    ]  # fmt: skip

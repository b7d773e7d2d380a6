"""``study.json`` as ``counterpoint study`` writes it, with texts of the test's choice."""

import json

ROWS = (("base", "base", 0.3), ("mixed", "train", 0.7), ("mgs", "train", 0.72), ("seq", "train", 0.6),
        ("experts", "experts", 0.85), ("ties", "merge", 0.65), ("seq+refresh", "refresh", 0.69),
        ("seq+rollback", "rollback", 0.64))  # fmt: skip

SEEDS = (0, 1, 2, 3, 4)

VERDICT = "mgs - mixed, average: +0.012 [-0.010, +0.034], not decided; 11 seeds would see 0.02."


def figures(domains):
    """Ids of the pictures that the file makes."""
    forests = {f"study-forest-{place}" for place in (*range(len(domains)), "average")}
    return forests | {
        "study-planned",
        "study-average",
        "study-pareto",
        "study-forgetting",
        "study-rigidity",
    }


def interval(mean, half=0.02):
    return {"value": mean, "low": mean - half, "high": mean + half}


def write_study(path, domains=("math", "code", "qa", "writing"), *, note="", rows=ROWS):
    """A study in the folder ``path``; ``note`` is every text."""
    path.mkdir(parents=True, exist_ok=True)
    contrasts = [
        _planned("mgs", "average", interval(0.012, 0.022), "not decided", 0.35, 11, note),
        _planned("experts", "average", interval(0.15, 0.03), "better", 0.9, 4, note),
        _planned("seq", domains[0], interval(-0.1, 0.03), "worse", 0.9, 4, note),
    ]
    study = {
        "schema": "counterpoint.study", "version": 2, "name": note or "pocket", "reference": "mixed",
        "seeds": list(SEEDS), "domains": list(domains), "worth": 0.02, "contrasts": contrasts,
        "verdicts": [note or VERDICT] * 3, "spreads": {"average": 0.0185},
        "settings": {note or "model": note or "pocket", "list": [note or "a"], "object": {note or "a": note or 1}},
        "rows": [_row(place, *row, domains, note) for place, row in enumerate(rows)],
        "notes": [note or "Toy tasks."], "environment": {note or "torch": note or "2.13.0"},
    }  # fmt: skip
    (path / "study.json").write_text(json.dumps(study))
    return path


def _planned(row, measure, change, verdict, power, seeds, note):
    return {
        "row": note or row, "measure": note or measure, "change": change, "p": 0.02, "p_corrected": 0.04,
        "verdict": note or verdict, "spread": 0.0185, "power": power, "seeds_needed": seeds,
    }  # fmt: skip


def _row(place, name, kind, level, domains, note):
    means = {domain: level + 0.02 * ((place + index) % 5) - 0.04 for index, domain in enumerate(domains)}
    means["average"] = level
    failed = [{"seed": 4, "reason": note or "out of memory"}] if name == "seq" else []
    seeds = [seed for seed in SEEDS if not failed or seed != 4]
    once = kind == "base"
    scores = {
        measure: {"mean": interval(mean), "by_seed": [mean + 0.01 * (seed - 2) for seed in seeds]}
        for measure, mean in means.items()
    }
    difference = dict.fromkeys(means, interval(level - 0.7, 0.03))
    return {
        "name": f"{note}{place}" if note and name != "mixed" else name, "kind": note or kind,
        "description": note or f"How {name} trains.", "seeds_done": [] if once else seeds, "failed": failed,
        "seeds_planned": 0 if once else len(SEEDS), "scores": scores,
        "difference": None if once or name == "mixed" else difference,
        "of": (note or "seq") if kind == "refresh" else None,
        "difference_of": difference if kind == "refresh" else None,
        "forgetting": {domain: interval(0.1) for domain in domains} if kind != "base" else None,
        "rigidity": {domain: interval(0.05) for domain in domains} if kind == "refresh" else None,
        "cost": {"steps": 240, "tokens": 141_000, "seconds": 150.0 + 10 * place},
    }  # fmt: skip

"""The files of a recovery as rollback, refresh and recover write them, with texts of the test's choice."""

import json

FIGURES = {"rollback-0-budget", "rollback-0-others", "rollback-0-test", "refresh-0-scores"}
"""Ids of the pictures that these files make."""

BUDGETS = (0.001, 0.01, 0.1)


def estimate(value, half=0.02):
    return {"value": value, "low": value - half, "high": value + half}


def by_domain(domains, first, others=0.5, half=0.02):
    """The first domain's score, and one for all others."""
    return {name: estimate(others if place else first, half) for place, name in enumerate(domains)}


def write_recovery(path, domains, *, note="", folder="recovery"):
    """The three files below the run directory ``path``; the first domain fell. ``note`` is every text."""
    place = path / folder
    place.mkdir(parents=True)
    for name, value in (
        ("rollback", rollback(domains, note)),
        ("refresh", refresh(domains, note)),
        ("recover", recover(domains, note)),
    ):
        value = {"schema": f"counterpoint.recovery.{name}", "version": 1, **value}
        (place / f"{name}.json").write_text(json.dumps(value))


def rollback(domains, note=""):
    split = {"prompts": 64, "samples": 4, "split": note or "even rows"}
    tried = [
        {
            "kind": kind, "draw": draw, "budget": budget, "scale": scale, "num_weights": int(1e6 * budget),
            "scores": {name: 0.5 + (gain * scale * budget if name == domains[0] else 0) for name in domains},
            "objective": 0.1,
        }
        for budget in BUDGETS
        for scale in (0.5, 1.0)
        for kind, draw, gain in (("rollback", None, 3.0), ("random", 0, 0.2), ("random", 1, 0.4))
    ]  # fmt: skip
    reported = [
        {"name": name, "draw": draw, "scores": by_domain(domains, score), "changes": by_domain(domains, score - 0.5, 0)}
        for name, draw, score in (
            ("before", None, 0.9), ("after", None, 0.5), ("rollback", None, 0.8), ("random", 0, 0.52),
            ("random", 1, 0.54),
        )
    ]  # fmt: skip
    return {
        "before": note or "checkpoints/step-40", "after": note or "checkpoints/step-80",
        "domain": domains[0], "other": domains[-1], "checkpoint": note or "recovery/rollback-math",
        "score": note or "damage", "unit": "coordinates", "where": "everywhere", "num_weights": 2_500_000,
        "num_changed": 1_200_000, "num_candidates": 1_000_000, "selection": split, "test": split, "tried": tried,
        "chosen": {"budget": 0.1, "scale": 1.0, "num_weights": 100_000}, "reported": reported,
        "verdict": note or f"The rollback brought {domains[0]} back from 0.50 to 0.80.", "notes": [note or "One note."],
        "seconds": 61.0,
    }  # fmt: skip


def refresh(domains, note=""):
    steps = [0, 4, 8, 12]
    return {
        "model": note or "checkpoints/step-80", "reference": note or None, "domain": domains[0],
        "run": note or "recovery/refresh-math", "checkpoint": note or "recovery/refresh-math/checkpoints/step-12",
        "options": {note or "learning rate": note or 1e-4}, "stopped": note or "recovered", "harmed": note or None,
        "steps": 12, "former": estimate(0.9), "start": by_domain(domains, 0.5),
        "evaluations": [{"step": step, "scores": by_domain(domains, 0.5 + 0.03 * step)} for step in steps[1:]],
        "changes": by_domain(domains, 0.36, 0.0),
        "verdict": note or f"{domains[0]} is back.", "notes": [note or "One note."], "seconds": 30.0,
    }  # fmt: skip


def recover(domains, note=""):
    attempts = [
        {
            "kind": kind, "domain": domains[0], "folder": note or f"recovery/{kind}", "file": note or f"{kind}.json",
            "checkpoint": note or f"recovery/{kind}/model", "scores": by_domain(domains, score),
            "changes": by_domain(domains, score - 0.5, 0.0), "seconds": 30.0, "verdict": note or f"{kind} helped.",
        }
        for kind, score in (("rollback", 0.8), ("refresh", 0.88))
    ]  # fmt: skip
    fallen = {
        "domain": domains[0], "from_step": 40, "to_step": 80, "former": estimate(0.9), "now": estimate(0.5),
        "change": estimate(-0.4),
    }  # fmt: skip
    return {
        "run": note or "runs/one", "fallen": [fallen], "plan": [note or "First a rollback, then a refresh."],
        "attempts": attempts, "chosen": "refresh", "checkpoint": note or "recovery/refresh/model",
        "sentences": [note or "The refresh was kept."], "seconds": 91.0,
    }  # fmt: skip

"""The files of a recovery as rollback, refresh and recover write them, with texts of the test's choice."""

import json

FIGURES = {"rollback-0-search", "rollback-0-test", "refresh-0-scores"}
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
        value = {"schema": f"counterpoint.{name}", "version": 2, **value}
        (place / f"{name}.json").write_text(json.dumps(value))


def trial(domains, kind, budget, scale, gain):
    scores = {name: 0.5 + (gain if name == domains[0] else 0) for name in domains}
    return {"kind": kind, "budget": budget, "scale": scale, "scores": scores}


def rollback(domains, note=""):
    masks = [(budget, scale) for budget in BUDGETS for scale in (0.5, 1.0)]
    tried = [trial(domains, "mask", budget, scale, 3 * scale * budget) for budget, scale in masks]
    nothing = trial(domains, "nothing", 0.0, 0.0, -0.03)
    measured = [
        {
            "name": name, "draws": 1, "moved": moved, "scores": by_domain(domains, score),
            "changes": by_domain(domains, score - 0.5, 0),
            "restored": None if moved is None else estimate(score - 0.05),
        }
        for name, moved, score in (
            ("before", None, 0.9), ("after", None, 0.5), ("mask", 0.066, 0.8), ("matched", 0.066, 0.77),
            ("uniform", 0.03, 0.54),
        )
    ]  # fmt: skip
    judged = {"name": "mask", "trial": tried[-1], "against": [note] if note else []}
    return {
        "before": note or "checkpoints/step-40", "after": note or "checkpoints/step-80",
        "domain": domains[0], "checkpoint": note or "recovery/rollback-math/checkpoint",
        "search": {"prompts": 64, "samples": 4},
        "test": {"prompts": 128, "samples": 4},
        "tried": [nothing, *tried, trial(domains, "pull-back", 1.0, 0.3, 0.2)], "judged": [judged],
        "measured": measured, "written": note or "mask", "seconds": 61.0,
        "sentences": [note or f"{domains[0]} is back by the rollback."],
    }  # fmt: skip


def refresh(domains, note=""):
    steps = [0, 4, 8, 12]
    return {
        "model": note or "checkpoints/step-80", "before": note or None, "domain": domains[0],
        "run": note or "recovery/refresh-math", "checkpoint": note or "recovery/refresh-math/checkpoints/step-12",
        "options": {note or "learning rate": note or 1e-4}, "stopped": note or "recovered", "harmed": note or None,
        "steps": 12, "former": estimate(0.9), "start": by_domain(domains, 0.5),
        "evaluations": [{"step": step, "scores": by_domain(domains, 0.5 + 0.03 * step)} for step in steps[1:]],
        "changes": by_domain(domains, 0.36, 0.0), "sentences": [note or f"{domains[0]} is back by the refresh."],
        "seconds": 30.0,
    }  # fmt: skip


def recover(domains, note=""):
    attempts = [
        {
            "kind": kind, "domain": domains[0], "folder": note or f"recovery/{kind}", "outcome": note or "back",
            "checkpoint": note or f"recovery/{kind}/model", "scores": by_domain(domains, score),
            "changes": by_domain(domains, score - 0.5, 0.0), "seconds": 30.0, "reason": note,
        }
        for kind, score in (("rollback", 0.8), ("refresh", 0.88))
    ]  # fmt: skip
    fallen = {
        "domain": domains[0], "from_step": 40, "to_step": 80, "former": estimate(0.9), "now": estimate(0.5),
        "change": estimate(-0.4),
    }  # fmt: skip
    return {
        "run": note or "runs/one", "fallen": [fallen], "plan": [note or "First a rollback, then a refresh."],
        "attempts": attempts, "chosen": [f"refresh of {domains[0]}"], "checkpoint": note or "recovery/refresh/model",
        "sentences": [note or "The refresh was kept."], "seconds": 91.0,
    }  # fmt: skip

"""The files of a diagnosis as ``counterpoint diagnose`` writes them, with texts of the test's choice."""

import json
from itertools import pairwise

STEPS = 15
"""Optimizer steps of a stage."""


FIGURES = {
    "diagnosis-damage", "diagnosis-conflicts", "diagnosis-damage-modules", "diagnosis-edits",
    "diagnosis-overlap-edits", "diagnosis-overlap-routes",
}  # fmt: skip
"""Ids of the pictures that these files make."""


def write_diagnosis(path, domains, modules, *, note="", failed=True):
    """``diagnosis/summary.json`` and ``behaviour.json`` in the run directory ``path``; ``note`` is every text."""
    folder = path / "diagnosis"
    folder.mkdir()
    places = [(a, b, i, list(domains).index(b)) for i, (a, b) in enumerate(_pairs(domains))]
    pairs = [_pair(*place, modules, note) for place in places]
    behaviour = _behaviour(domains, note)
    stages = [
        {
            "stage": name, "domains": [name], "first_step": STEPS * i, "last_step": STEPS * (i + 1),
            "modules": {name: 0.01 * k for k, name in enumerate(modules)},
        }
        for i, name in enumerate(domains)
    ]  # fmt: skip
    parts = [{"name": note or "damage-code-qa", "status": "failed", "reason": note or "too few prompts"}] * failed
    summary = {
        "run": note or "run",
        "domains": list(domains),
        "pairs": pairs,
        "changes": behaviour["changes"],
        "stages": stages,
        "parts": parts,
        "verdicts": [note or "code fell."],
        "notes": [note],
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "behaviour.json").write_text(json.dumps(behaviour))


def estimate(value, half=0.02):
    return {"value": value, "low": value - half, "high": value + half}


def _pairs(domains):
    return [(domains[a], domains[b]) for b in range(len(domains)) for a in range(b)]


def _pair(earlier, later, index, number, modules, note):
    overlap = {"jaccard": 0.1 + 0.01 * index, "chance": 0.053, "p_value": 0.001}
    return {
        "earlier": earlier, "later": later, "together": False, "verdict": note or "fell",
        "first_step": STEPS * number, "found": ["score"], "place": note or "40% in norm",
        "change": estimate(-0.08), "details": [note or "Conflicts: none seen overall."],
        "sentence": note or f"{earlier} lost -8.0 points while {later} was trained: --alone.",
        "damage": {
            **{key: estimate(0.1 + 0.01 * index) for key in ("measured", "first", "second", "fisher")},
            "modules": [
                {"module": name, "second": estimate(0.03 * k - 0.05), "edit_share": 0.1}
                for k, name in enumerate(modules)
            ],
        },
        "conflict": {
            "step": 15, "moment": note or "after code", "cosine": 0.01, "floor": 0.05, "verdict": 0,
            "modules": [
                {"module": name, "cosine": 0.1 * k - 0.3, "floor": 0.1, "debiased": None, "verdict": (k % 3) - 1}
                for k, name in enumerate(modules)
            ],
        },
        "edits": overlap, "routes": overlap | {"jaccard": 0.5},
    }  # fmt: skip


def _behaviour(domains, note):
    steps = [STEPS * i for i in range(len(domains) + 1)]
    changes = [
        {
            "domain": name, "during": [during], "stage": during, "role": "own" if name == during else "earlier",
            "first_step": first, "last_step": last,
            "change": estimate(0.3 if name == during else -0.08),
            "corrected": estimate(0.3 if name == during else -0.08, 0.07),
            "verdict": "rose" if name == during else "fell",
        }
        for during, (first, last) in zip(domains, pairwise(steps), strict=True)
        for name in domains
    ]  # fmt: skip
    cells = [(name, step) for step in steps for name in domains]
    return {
        "changes": changes,
        "scores": [
            {"domain": name, "step": step, "moment": note or f"step {step}", "completion_length": 5.0 + step / 10}
            for name, step in cells
        ],
        "diversity": [{"domain": name, "step": step, "n": 2, "distinct": 0.8} for name, step in cells],
        "entropy": [{"domain": name, "stage": 0, "first": estimate(1.0), "last": estimate(0.2)} for name in domains],
    }

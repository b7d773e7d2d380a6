"""Run directories with planted scores and no model, for what reads runs alone."""

import json
import random

STEPS = 10
"""Optimizer steps of a stage."""


def write_run(path, planted, *, prompts=120, samples=4, steps=STEPS, seed=0):
    """A sequential run; ``planted`` holds every domain's true score before and after every stage.

    Prompts differ in difficulty, and the same prompts are scored every time, as in a real run.
    """
    stream = random.Random(seed)
    path.mkdir(parents=True)
    domains = list(planted)
    spread = {name: [stream.uniform(-0.15, 0.15) for _ in range(prompts)] for name in domains}
    evals, rows = [], []
    for moment in range(len(domains) + 1):
        for name in domains:
            scores = [_score(stream, planted[name][moment] + shift, samples) for shift in spread[name]]
            evals.append(_line(moment, steps, name, scores, samples, len(domains)))
            rows += [_sample(moment, steps, name, i) for i in range(4)]
    stages = [
        {
            "domains": [name],
            "first_step": i * steps,
            "last_step": (i + 1) * steps,
            "checkpoint": f"checkpoints/step-{i}",
        }
        for i, name in enumerate(domains)
    ]
    metrics = [
        {"step": stage["first_step"] + k, f"entropy/{stage['domains'][0]}": 1.3 - 0.1 * k}
        for stage in stages
        for k in range(1, steps + 1)
    ]
    state = {"name": path.name, "strategy": "sequential", "domains": domains, "status": "done", "started": 0.0}
    (path / "run.json").write_text(json.dumps(state | {"ended": 60.0, "steps": steps * len(domains), "stages": stages}))
    for name, lines in (("evals", evals), ("metrics", metrics), ("samples", rows)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _score(stream, rate, samples):
    return sum(stream.random() < min(1, max(0, rate)) for _ in range(samples)) / samples


def _line(moment, steps, domain, scores, samples, last):
    when = "before" if moment == 0 else "after" if moment == last else "stage"
    mean = sum(scores) / len(scores)
    return {
        "step": moment * steps, "when": when, "stage": moment - 1 if moment else None, "domain": domain, "mean": mean,
        "low": mean - 0.05, "high": mean + 0.05, "greedy": mean, "prompts": len(scores), "samples": samples,
        "completion_length": 5.0 + moment, "truncated": 0.0, "seconds": 1.0, "scores": scores,
    }  # fmt: skip


def _sample(moment, steps, domain, i):
    return {
        "step": moment * steps, "when": "before" if moment == 0 else "stage", "domain": domain, "prompt": f"{i}+{i}=",
        "completion": str(i + moment), "reward": 1.0, "reference": str(2 * i),
    }  # fmt: skip

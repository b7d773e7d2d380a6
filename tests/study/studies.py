"""Small study files, and planted results of their jobs, for the tests of studies."""

import json

import yaml

from counterpoint.study import JobRecord
from counterpoint.study.load import load_study

TRAINING = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_generations": 4,
    "max_completion_length": 6,
    "learning_rate": 1e-3,
}


EVALUATED = {
    "greedy": None, "prompts": 4, "samples": 1, "completion_length": 3.0, "truncated": 0.0, "seconds": 1.0,
    "scores": [0.5] * 4,
}  # fmt: skip


def base(model="pocket"):
    return {
        "model": str(model),
        "domains": {"math": {"source": "pocket"}, "code": {"source": "pocket"}},
        "training": dict(TRAINING),
        "evaluation": {"prompts": 4, "samples": 1, "greedy": False},
        "run": {"device": "cpu"},
    }


def write_study(folder, rows, **keys):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    data = {"name": "tiny", "seeds": 2, "config": base(), "rows": rows} | keys
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def study_of(folder, rows, **keys):
    return load_study(write_study(folder, rows, **keys))


def run_state(status="done", strategy="mixed", stages=()):
    """What ``run.json`` holds."""
    about = {"name": "run", "strategy": strategy, "domains": ["math", "code"], "status": status}
    return about | {"started": 0.0, "ended": 1.0, "steps": 6, "stages": list(stages)}


def plant_run(folder, job, scores, own=None, tokens=100):
    """The files of a finished training run: ``scores`` by domain, ``own`` what each had after its own stage."""
    path = folder.run(job.id)
    path.mkdir(parents=True)
    order = job.config.strategy.order or list(scores)
    stages = [[name] for name in order] if job.config.strategy.sequential else [list(scores)]
    length = 6 // len(stages)
    entries = [
        {
            "kind": "train", "domains": names, "first_step": i * length, "last_step": (i + 1) * length, "taken": 0,
            "checkpoint": f"checkpoints/step-{(i + 1) * length}",
        }
        for i, names in enumerate(stages)
    ]  # fmt: skip
    state = run_state(strategy=job.config.strategy.label, stages=entries)
    (path / "run.json").write_text(json.dumps(state))
    lines = []
    for i, entry in enumerate(entries):
        last = entry is entries[-1]
        for name, mean in scores.items():
            value = mean if last or name != entry["domains"][0] or own is None else own[name]
            when = "after" if last else "stage"
            lines.append(
                {"step": entry["last_step"], "when": when, "stage": i, "domain": name} | EVALUATED | interval(value)
            )
    write_lines(path / "evals.jsonl", lines)
    steps = range(1, entries[-1]["last_step"] + 1)
    metrics = [
        {"step": s, "stage": (s - 1) // length, "num_tokens": tokens * ((s - 1) % length + 1), "step_time": 0.5}
        for s in steps
    ]
    write_lines(path / "metrics.jsonl", metrics)
    folder.write_record(done(job))
    return path


def plant_scores(folder, job, scores, seconds=3.0):
    """The files of a finished job that is no training run."""
    lines = [{"domain": name, "seconds": 2.0} | interval(mean) for name, mean in scores.items()]
    write_lines(folder.run(job.id) / "scores.jsonl", lines)
    folder.write_record(done(job, seconds + 2.0 * len(lines)))


def interval(mean):
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.05}


def done(job, seconds=9.0):
    fields = {
        "id": job.id,
        "row": job.row,
        "seed": job.seed,
        "domain": job.domain,
        "settings": job.settings.model_dump(mode="json"),
    }
    return JobRecord(**fields, status="done", seconds=seconds)


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def always_fails(prompts, completions, **columns):
    """A reward that raises."""
    raise RuntimeError("this reward always fails")

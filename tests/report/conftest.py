"""A synthetic run directory with the files, keys and noise of a real one, and headless Chromium where there is one."""

import json

import numpy as np
import pytest
import yaml

from chromium import Chromium, program
from gram_files import write_grams

DOMAINS = ("math", "code", "qa", "writing")
MODULES = (
    "embedding",
    "layers.0.attention",
    "layers.0.mlp",
    "layers.1.attention",
    "layers.1.mlp",
    "layers.10.mlp",
    "norm",
)


def write_run(
    path, *, strategy="mgs", seed=0, domains=DOMAINS, steps=60, modules=MODULES, lift=0.25, prompt="Compute 17 + 25.",
    completion="Let me see.\n17 + 25 = 42\nAnswer: 42", note="", stages=False,
):  # fmt: skip
    """Writes a whole run directory; ``prompt``, ``completion`` and ``note`` go into every text field there is."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True)
    config = {
        "model": note or "pocket",
        "strategy": strategy,
        "domains": {name: {"source": "pocket", "share": 1.0 + (name == "math")} for name in domains},
        "training": {"max_steps": steps, "learning_rate": 5e-5, "run_name": note},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=False))
    write_json(path / "environment.json", {"torch": "2.13.0", "devices": ["cpu"], "note": note})
    info = {
        "name": path.name, "strategy": strategy, "domains": sorted(domains), "status": "done", "steps": steps,
        "started": "2026-11-22T09:00:00+00:00", "ended": "2026-11-22T09:04:05+00:00", "stages": [],
    }  # fmt: skip
    if stages:
        length = steps // len(domains)
        info["stages"] = [
            {
                "domains": [name],
                "first_step": i * length,
                "last_step": (i + 1) * length,
                "checkpoint": f"checkpoints/{i}",
            }
            for i, name in enumerate(domains)
        ]
    write_json(path / "run.json", info)
    write_lines(path / "metrics.jsonl", metrics(rng, domains, steps, lift))
    write_lines(path / "evals.jsonl", evals(domains, steps, lift))
    rows = []
    for name in domains:
        for when, step in (("before", 0), ("after", steps)):
            rows += [
                {
                    "step": step, "when": when, "domain": name, "prompt": f"{prompt} ({i})",
                    "completion": completion if when == "after" else "I do not know, but " * 40 + completion,
                    "reward": float(when == "after"), "reference": note or "42",
                }
                for i in range(4)
            ]  # fmt: skip
    write_lines(path / "samples.jsonl", rows)
    write_grams(path / "grams.jsonl", grams(rng, domains, steps, modules), modules, sorted(domains))
    return path


def metrics(rng, domains, steps, lift):
    names = sorted(domains)
    rows = []
    for step in range(1, steps + 1):
        progress = step / steps
        row = {
            "step": step,
            "time": 1795338000 + 4 * step,
            "loss": 0.01,
            "step_time": 4 + rng.random(),
            "num_tokens": 9000 * step,
        }
        for i, name in enumerate(domains):
            row |= {
                f"reward/{name}": 0.2 + 0.1 * i + lift * progress + 0.05 * rng.standard_normal(),
                f"entropy/{name}": 1.1 - 0.15 * i - 0.4 * progress + 0.04 * rng.standard_normal(),
                f"completion_length/{name}": 30 + 8 * i - 5 * progress + 2 * rng.standard_normal(),
                f"truncated/{name}": max(0.0, 0.1 - 0.1 * progress + 0.03 * rng.standard_normal()),
                f"zero_advantage/{name}": min(1.0, abs(0.2 + 0.3 * progress + 0.08 * rng.standard_normal())),
                f"kl/{name}": 0.0,
                f"share_prompts/{name}": 1 / len(domains),
                f"share_tokens/{name}": 2 * (i + 1) / len(domains) / (len(domains) + 1),
                f"effective_weight/{name}": 2 * (i + 1) / len(domains) / (len(domains) + 1),
            }
        for a, b in [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]:
            row[f"cosine/{a}|{b}"] = 0.03 * rng.standard_normal()
            row[f"conflict_rate/{a}|{b}"] = 0.5 + 0.1 * rng.standard_normal()
        row |= {
            "conflict_rate": 0.5 + 0.06 * rng.standard_normal(),
            "removed": abs(0.05 + 0.02 * rng.standard_normal()),
        }
        rows.append(row)
    return rows


def evals(domains, steps, lift):
    rows = []
    for when, step in (("before", 0), ("during", steps // 2), ("after", steps)):
        for i, name in enumerate(domains):
            mean = 0.21 + 0.09 * i + (lift - 0.07 * i) * step / steps
            rows.append(
                {
                    "step": step, "when": when, "stage": None, "domain": name, "mean": mean, "low": mean - 0.051,
                    "high": mean + 0.053, "greedy": mean + 0.2, "prompts": 64, "samples": 4,
                    "completion_length": 12.3, "truncated": 0.02, "seconds": 1.2,
                }
            )  # fmt: skip
    return rows


def grams(rng, domains, steps, modules):
    count = len(domains)
    gradients = rng.standard_normal((steps, len(modules), count, 200)).astype(np.float32)
    # One pair that truly clashes in one module, so that the picture has something to show.
    if count > 1 and len(modules) > 4:
        gradients[:, 4, 1] -= 0.5 * gradients[:, 4, 0]
    return np.einsum("sgdp,sgep->sgde", gradients, gradients)


def write_json(path, value):
    path.write_text(json.dumps(value))


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def make_run():
    return write_run


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "mgs")


@pytest.fixture(scope="session")
def chromium_command():
    command = program()
    if command is None:
        pytest.skip("no Chromium on this machine: install it (apt-get install chromium) to check the page in a browser")
    return command


@pytest.fixture(scope="session")
def chromium(chromium_command, tmp_path_factory):
    with Chromium(chromium_command, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium):
    """Headless Chromium with an empty page: one for all tests, for a start takes longer than most of them."""
    chromium.new()
    return chromium

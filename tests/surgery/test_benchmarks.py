"""The benchmarks of surgery run, on shapes too small to say anything, and their fits are right."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_surgery(tmp_path):
    out = tmp_path / "surgery.json"
    grid = ["--grouping", "module", "tensor", "--buffers", "device", "bfloat16"]
    text = run("surgery.py", "--quick", "--json", str(out), *grid)
    result = json.loads(out.read_text())
    assert [(row["grouping"], row["buffers"]) for row in result["rows"]] == [
        ("module", "device"),
        ("module", "bfloat16"),
        ("tensor", "device"),
        ("tensor", "bfloat16"),
    ]
    assert all(row["ours"] > 0 and row["loop"] > 0 and row["bound"] > 0 for row in result["rows"])
    assert {"date", "device", "torch", "threads"} <= set(result["machine"])
    assert result["share"]["surgery"] > 0
    assert "over bound" in text


@pytest.mark.slow
def test_scaling(tmp_path):
    out = tmp_path / "scaling.json"
    text = run("scaling.py", "--quick", "--ranks", "1", "2", "--json", str(out))
    result = json.loads(out.read_text())
    assert [row["size"] for row in result["domains"]["rows"]] == [1, 2, 4]
    assert len(result["parameters"]["rows"]) == 2
    assert set(result["ranks"]["seconds"]) == {"1", "2"}
    assert text.count("exponent") == 3


def test_exponents_of_known_powers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scaling

    exact = scaling.fit([(n, 3.0 * n**2) for n in (1, 2, 4, 8)])
    assert exact.slope == pytest.approx(2)
    assert exact.margin == pytest.approx(0, abs=1e-6)
    # ln y = 0, 1, 1 at ln x = 0, 1, 2: slope 1/2, residual squares 1/6, one degree of freedom.
    noisy = scaling.fit([(1.0, 1.0), (math.e, math.e), (math.e**2, math.e)])
    assert noisy.slope == pytest.approx(0.5)
    assert noisy.margin == pytest.approx(12.71 * math.sqrt(1 / 6 / 2), rel=1e-3)
    assert math.isnan(scaling.fit([(2.0, 1.0), (2.0, 1.5)]).slope)

"""A new weighting is one class in one file: nothing else is touched, and everything knows it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import counterpoint

NEW = '''
"""Half of every gradient where two of them conflict."""

from typing import Annotated

import torch
from annotated_types import Gt, Le, doc
from torch import Tensor

from ..gram import conflicts
from .base import Context, Weighting


class Damped(Weighting):
    """Every gradient shortened where any two conflict."""

    name, paper = "damped", "2601.00001"
    strategies = (("mgs-damped", "module", "modules in conflict step less"),)

    def __init__(self, by: Annotated[float, Gt(0), Le(1), doc("Factor in a conflict.")] = 0.5) -> None:
        self.by = by

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        conflict_G = conflicts(gram_GDD).any(-1).any(-1)
        return torch.where(conflict_G, self.by, 1.0).double().unsqueeze(1).repeat(1, context.num_domains)
'''

OWN = """
from typing import Annotated
import torch
from annotated_types import Gt
from counterpoint.surgery import Weighting

class Own(Weighting):
    def __init__(self, by: Annotated[float, Gt(0)] = 0.5) -> None:
        self.by = by

    def __call__(self, gram_GDD, context):
        return torch.full(gram_GDD.shape[:2], self.by)
"""

USE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from typer.testing import CliRunner
from counterpoint.cli.app import app
from counterpoint.config import load_config
from counterpoint.config.reference import strategies
from counterpoint.study.load import load_study
from counterpoint.surgery import Surgeon

OWN = "strategy={grouping: layer, weighting: 'mine:Own', options: {by: %s}}"

def ask(*arguments):
    result = CliRunner().invoke(app, arguments)
    return str(result.exception) if result.exception else result.stdout

model = torch.nn.Linear(2, 1, bias=False)
surgeon = Surgeon(model, {"grouping": "tensor", "weighting": "damped", "options": {"by": 0.25}})
for domain, sign in (("a", 1), ("b", -2)):
    (sign * model(torch.ones(2))).sum().backward()
    surgeon.collect(domain)
surgeon.combine()

study = load_study("study.yaml")
print(json.dumps({
    "fine": ask("config", "check", "c.yaml"),
    "wrong": ask("config", "check", "c.yaml", "--set", "strategy.options.by=2"),
    "unknown": ask("config", "check", "c.yaml", "--set", "strategy=mgs-dampd"),
    "own": ask("config", "check", "c.yaml", "--set", OWN % "0.25"),
    "wrong own": ask("config", "check", "c.yaml", "--set", OWN % "-1"),
    "gradient": model.weight.grad.tolist(),
    "row": [study.configs[row, ""].strategy.label for row in study.rows],
    "table": strategies(),
}))
"""

DOMAINS = """
domains: {math: {source: pocket}, qa: {source: pocket}}
training: {max_steps: 2, gradient_accumulation_steps: 2}
run: {device: cpu}
"""


@pytest.mark.slow
def test_a_weighting_in_one_new_file_is_known_everywhere(tmp_path):
    package = tmp_path / "src" / "counterpoint"
    shutil.copytree(Path(counterpoint.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "surgery" / "weightings" / "damped.py").write_text(NEW)
    (tmp_path / "src" / "mine.py").write_text(OWN)
    (tmp_path / "c.yaml").write_text("strategy: {name: mgs-damped, options: {by: 0.1}}\n" + DOMAINS)
    rows = "rows: {mixed: mixed, named: mgs-damped, own: {strategy: {grouping: layer, weighting: damped}}}\n"
    (tmp_path / "study.yaml").write_text("name: s\nconfig: c.yaml\nseeds: 2\n" + rows)
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "src"), "PATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "fine. Strategy mgs-damped-by-0.1," in found["fine"]
    assert "run runs/c-mgs-damped-by-0.1 " in found["fine"]
    assert "strategy.options.by: should be less than or equal to 1, found 2. Factor in a conflict." in found["wrong"]
    assert "unknown strategy 'mgs-dampd': did you mean 'mgs-damped'?" in found["unknown"]
    assert "fine. Strategy layer-mine-Own-by-0.25," in found["own"]
    assert "by should be greater than 0, found -1" in found["wrong own"]
    assert found["gradient"] == [[-0.25, -0.25]]
    assert found["row"] == ["mixed", "mgs-damped", "layer-damped"]
    assert (
        "| `damped` | Every gradient shortened where any two conflict. | `by` (number, > 0, ≤ 1; 0.5)" in found["table"]
    )
    assert "| `mgs-damped` | `module` | `damped` | modules in conflict step less |" in found["table"]


def test_two_classes_of_one_name_are_refused(tmp_path, monkeypatch):
    from counterpoint.registry import Named, named_classes

    for file in ("one", "two"):
        (tmp_path / f"{file}.py").write_text(
            "from counterpoint.registry import Named\nclass Twice(Named):\n    name = 'twice'\n"
        )
    package = type(sys)("twice_package")
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "twice_package", package)
    with pytest.raises(AssertionError, match="two classes are named 'twice'"):
        named_classes("twice_package", [str(tmp_path)], Named)

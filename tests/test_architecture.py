"""Imports point one way, and what must stay light never imports torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "counterpoint"

EVERYWHERE = {"masking", "progress"}
"""What every package may import: both import nothing."""

ALLOWED = {
    "masking": set(),
    "progress": set(),
    "errors": set(),
    "registry": {"errors"},
    "anatomy": set(),
    "balance": {"errors", "registry"},
    "inputs": {"errors"},
    "disk": {"errors"},
    "launch": {"errors"},
    "stats": {"errors"},
    "series": {"stats"},
    "tables": {"stats"},
    "results": {"errors", "disk", "tables"},
    "runs": {"errors", "disk", "stats"},
    "pocket": {"errors", "disk"},
    "rewards": {"errors", "inputs", "pocket", "stats"},
    "surgery": {"errors", "anatomy", "registry"},
    "config": {"balance", "errors", "inputs", "registry", "rewards", "surgery"},
    "domains": {"errors", "inputs", "config", "rewards", "pocket"},
    "evaluation": {"errors", "config", "domains", "launch", "rewards", "results", "runs", "stats", "tables"},
    "models": {"errors", "inputs", "config", "pocket"},
    "training": {
        *("errors", "inputs", "config", "domains", "evaluation", "launch", "models", "pocket", "rewards", "runs"),
        *("anatomy", "balance", "surgery"),
    },
    "engine": {
        *("errors", "config", "disk", "domains", "evaluation", "launch", "models", "runs", "stats", "surgery"),
        *("results", "training"),
    },
    "checkpoints": {"errors", "anatomy", "inputs", "disk", "models", "pocket"},
    "topk": set(),
    "merging": {"errors", "checkpoints", "results", "tables", "topk"},
    "diagnosis": {
        *("errors", "checkpoints", "config", "disk", "domains", "evaluation", "models", "pocket", "runs", "surgery"),
        *("anatomy", "series", "stats", "results", "tables"),
    },
    "recovery": {
        *("errors", "checkpoints", "config", "disk", "domains", "evaluation", "launch", "models", "pocket", "runs"),
        *("anatomy", "surgery", "engine", "diagnosis", "stats", "results", "tables", "topk"),
    },
    "study": {
        *("inputs", "registry"),
        *("errors", "checkpoints", "config", "disk", "domains", "evaluation", "launch", "merging", "models", "pocket"),
        *("runs", "surgery", "engine", "diagnosis", "recovery", "stats", "results", "tables"),
    },
    "verify": {"errors", "anatomy", "surgery"},
    "companions": {"errors", "inputs", "config", "models"},
    "plan": {"anatomy", "companions", "inputs", "config", "models", "surgery"},
    "report": {"errors", "evaluation", "runs", "disk", "series", "stats", "tables", "results", "study"},
    "cli": {
        "balance",
        "inputs",
        *("errors", "config", "domains", "evaluation", "pocket", "report", "rewards", "runs", "surgery"),
        *("engine", "training", "disk", "launch", "verify", "plan", "models", "diagnosis", "checkpoints", "merging"),
        *("recovery", "study", "results", "tables", "stats", "companions"),
    },
}
"""Package -> packages it may import, at the top of a file or inside a function."""


def package_of(path):
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imports_of(path):
    """Names of counterpoint's packages that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = path.relative_to(SOURCE.parent).with_suffix("").parts[: -node.level]
                module = ".".join([*base, *([module] if module else [])])
            modules = [module]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "counterpoint" and len(parts) > 1:
                yield parts[1]


def files():
    return [
        p for p in sorted(SOURCE.rglob("*.py")) if p.name not in ("__init__.py", "__main__.py") or p.parent != SOURCE
    ]


def test_every_package_has_its_place():
    assert {package_of(path) for path in files()} == set(ALLOWED)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    package = package_of(path)
    assert set(imports_of(path)) - {package} <= ALLOWED[package] | EVERYWHERE


def test_the_check_sees_a_forbidden_import(tmp_path):
    assert "engine" in set(imports_of(SOURCE / "cli" / "train.py"))
    assert "engine" not in ALLOWED["report"]


LIGHT = [
    "config",
    "errors",
    "registry",
    "results",
    "tables",
    "inputs",
    "runs",
    "report",
    "rewards",
    "pocket",
    "pocket.tasks",
    "cli.app",
    "stats",
    "series",
]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_do_not_import_torch(module):
    code = f"import counterpoint.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_surgery_imports_torch_alone():
    code = (
        "import counterpoint.surgery, sys; "
        "sys.exit(any(m in sys.modules for m in ('transformers', 'trl', 'accelerate', 'datasets', 'peft')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


MAX_LINES = 500


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES

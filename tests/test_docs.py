"""What the documentation shows exists: links, commands, configurations, imports."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from counterpoint.cli.app import app
from counterpoint.config import parse_config

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMANDS = typer.main.get_command(app)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def shown_commands():
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == "counterpoint":
                    yield pytest.param(words[1:], id=f"{page.name}: {' '.join(words[:4])}")


@pytest.mark.parametrize("words", [*shown_commands()])
def test_shown_commands_have_the_shown_options(words):
    command = COMMANDS
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= known


def shown_configurations():
    for page in PAGES:
        for i, block in enumerate(blocks(page, "yaml")):
            data = yaml.safe_load(block)
            if isinstance(data, dict) and "domains" in data and "model" in data:
                yield pytest.param(block, id=f"{page.name}-{i}")


@pytest.mark.parametrize("block", [*shown_configurations()])
def test_shown_configurations_are_valid(block, monkeypatch, tmp_path):
    data = yaml.safe_load(block)
    for domain in data["domains"].values():
        rewards = domain.get("reward")
        if isinstance(rewards, list):  # functions of the reader's own are not here
            domain["reward"] = [r for r in rewards if not (isinstance(r, dict) and r["name"].startswith("my_"))]
    assert parse_config(data).domains


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_are_python(page):
    for block in blocks(page, "python"):
        assert ast.parse(block).body


def test_there_is_something_to_check():
    assert len(list(shown_commands())) >= 8
    assert list(shown_configurations())

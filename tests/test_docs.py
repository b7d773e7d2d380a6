"""What the documentation shows exists: links, commands, configurations, imports; its site has every page."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import typer
import yaml

from counterpoint.cli.app import app
from counterpoint.config import parse_config
from counterpoint.stats import Estimate
from scripts import load_script

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").rglob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *EXAMPLES])
COMMANDS = typer.main.get_command(app)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


MADE = {"cli.md", "results.md", "results.schema.json"}
"""Pages of the site that are made from the code."""


def anchors(page):
    """Ids of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = [re.sub(r"\]\([^)]*\)", "", title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        if target.startswith(("http://", "https://")) or target in MADE:
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}#{anchor}"


class _Nav(yaml.SafeLoader):
    """mkdocs.yml names Python objects, which are not needed here."""


_Nav.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def test_every_page_is_in_the_navigation_once():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for item in (entry if isinstance(entry, list) else entry.values()) for page in pages(item)]

    nav = pages(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=_Nav)["nav"])
    written = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    written |= {str(page.relative_to(ROOT)) for page in EXAMPLES}
    assert sorted(nav) == sorted(written | {name for name in MADE if name.endswith(".md")})


@pytest.fixture(scope="module")
def made():
    """What makes pages from the code."""
    return load_script(ROOT / "tools" / "docs_pages.py")


def test_the_page_of_commands_has_every_command_and_option(made):
    text = made.command_line()
    found = list(made._leaves("counterpoint", COMMANDS))
    assert len(found) > 10
    for name, command in found:
        section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            assert parameter.opts[0] in section or parameter.param_type_name == "argument", (name, parameter.opts)


def test_the_page_of_results_names_every_field(made):
    schema = made.result_schema()
    page = made.results_page(schema)
    for name, definition in schema["$defs"].items():
        assert f"## {name}\n" in page
        assert all(f"| `{field}` |" in page for field in definition["properties"])


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.html", '<script src="https://cdn.example/x.js"></script>', 1),
        ("a.html", '<link rel="stylesheet" href="//fonts.example/css?family=X">', 1),
        ("a.html", '<script src="assets/x.js"></script><a href="https://arxiv.org/abs/1">paper</a>', 0),
        ("a.css", '@import "https://x.example/y.css"; p { background: url(//x.example/y.png) }', 2),
        ("a.css", "p { background: url('data:image/svg+xml,<svg xmlns=\"http://www.w3.org/2000/svg\"/>') }", 0),
    ],
)
def test_what_a_page_would_load_from_a_network_is_found(made, tmp_path, name, text, found):
    (tmp_path / name).write_text(text)
    assert len(made.loaded_from_elsewhere(tmp_path / name)) == found


@dataclass(frozen=True)
class _Part:
    """One part.

    More of it.
    """

    change: Estimate | None


@dataclass(frozen=True)
class _Whole:
    names: tuple[str, ...]
    parts: Mapping[str, _Part]
    pair: tuple[int, float]
    how: Literal["rollback", "refresh"]


def test_the_schema_of_a_result_follows_the_types_of_its_fields(made):
    definitions = {}
    assert made._named(_Whole, definitions) == {"$ref": "#/$defs/_Whole"}
    assert definitions["_Whole"]["properties"] == {
        "names": {"type": "array", "items": {"type": "string"}},
        "parts": {"type": "object", "additionalProperties": {"$ref": "#/$defs/_Part"}},
        "pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": ["number", "null"]}]},
        "how": {"enum": ["rollback", "refresh"]},
    }
    assert definitions["_Part"]["description"] == "One part."
    assert definitions["_Part"]["properties"] == {"change": {"anyOf": [{"$ref": "#/$defs/Estimate"}, {"type": "null"}]}}
    assert made._type({"$ref": "#/$defs/Estimate"}) == "[Estimate](#estimate)"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_shell_blocks_are_shell(page):
    for block in re.findall(r"^```bash[^\n]*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


def test_the_rewards_and_weightings_of_the_guide_do_what_it_says():
    import torch

    names = {}
    for block in blocks(ROOT / "docs" / "own.md", "python"):
        exec(block, names)
    assert names["polite"](["please", "no"], bonus=0.5) == [0.5, 0.0]
    gram_GDD = torch.tensor([[[4.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    weights_GD = names["shorter"](gram_GDD, None)
    assert weights_GD.sum(1).tolist() == pytest.approx([2.0])
    assert (weights_GD[0, 0] * 2).item() == pytest.approx((weights_GD[0, 1] * 1).item())


def test_the_curriculum_of_the_guide_gives_more_prompts_to_the_domain_that_lacks_more():
    names = {}
    (block,) = blocks(ROOT / "docs" / "weights.md", "python")
    exec(block, names)
    history = [{"step": 0, "reward": {"math": 1.0}}, {"step": 1, "reward": {"math": 0.2, "code": 0.8}}]
    mix = {"shares": {"math": 1.0, "code": 1.0}, "weights": {"math": 1.0, "code": 1.0}}
    shares = names["next_mix"](history, mix)["shares"]
    assert shares["math"] / sum(shares.values()) == pytest.approx((0.5 + 0.8 / 1.0) / 2, abs=0.01)
    assert all(
        share > 0
        for share in names["next_mix"]([{"step": 0, "reward": {"math": 1.0, "code": 1.0}}], mix)["shares"].values()
    )


@pytest.mark.slow
def test_the_script_of_the_tutorial_runs(tmp_path):
    (script,) = blocks(ROOT / "docs" / "trl-script.md", "python")
    (tmp_path / "script.py").write_text(script)
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "runs" / "first" / "run.json").exists()
    report = [sys.executable, "-m", "counterpoint", "report", "runs/first"]
    subprocess.run(report, cwd=tmp_path, check=True, capture_output=True)


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
def test_shown_configurations_are_valid(block, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-nobody")
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

"""Configurations that no friend wrote: refused with our own errors, or read."""

import pytest
import yaml

from counterpoint.config import load_config, parse_config
from counterpoint.errors import ConfigError
from hostile import damaged, mutated, survey

TREE = {
    "model": {"path": "pocket", "lora": {"r": 8}},
    "strategy": {"name": "mgs", "protect": ["math"], "options": {}},
    "domains": {
        "math": {"source": {"type": "pocket", "size": 100}, "share": 2, "evaluation": {"size": 4}},
        "quiz": {
            "source": {"type": "file", "path": "rows.jsonl", "format": "auto"},
            "prompt": "{question}",
            "columns": {"answer": "solution.final"},
            "filter": {"level": ["easy"]},
            "reward": [{"name": "choice"}, {"name": "length", "weight": 0.5, "options": {"maximum": 5}}],
        },
        "both": {
            "source": [{"type": "file", "path": "a.jsonl", "share": 3}, {"type": "hub", "path": "b/c", "share": 1}],
            "reward": "text",
            "evaluation": {"source": [{"type": "pocket", "task": "math"}, "b.jsonl"]},
        },
    },
    "training": {"max_steps": 4, "learning_rate": 1e-5},
    "evaluation": {"every": 2, "prompts": 4},
    "recovery": {"watch": False},
    "run": {"name": "x", "seed": 1, "keep": 2},
}
TEXT = yaml.safe_dump(TREE, sort_keys=False)
DOMAINS = "domains: {math: {source: pocket}}\n"


def refused(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    str(caught.value).encode()
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: a\0b\n", "not valid YAML: unacceptable character"),
        ('model: "a\\0b"\n', "model: holds a NUL"),
        ('model: "\\ud800"\n', "model: holds a NUL or half of a character"),
        ("domains: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("training: {x: " + "[" * 100 + "]" * 100 + "}", "nested more than 64 deep"),
        ("training: {max_steps: " + "9" * 5000 + "}", "training.max_steps: cannot be read as YAML"),
        ("training: {max_steps: 0x" + "f" * 5000 + "}", "more than 63 bits"),
        ("run: {seed: 4294967296}", "run.seed: should be less than or equal to 4294967295"),
        ("!!int foo: 1", "foo: unknown key"),
        ("!!binary x: 1", "x: unknown key"),
        ("model: !!binary aGVsbG8=", "the tag"),
        ("model: !!bool x", "model: cannot be read as YAML"),
        ("model: " + "m" * 300, "no part of more than 255 bytes"),
        ("run: {dir: " + "n" * 300 + "}", "no part of more than 255 bytes"),
        ("run: {name: " + "n" * 300 + "}", "run.name: String should have at most 100 characters"),
        ('"\\U99999999": 1', "not valid YAML"),
        ("%YAML " + "9" * 5000 + ".1\n---\n", "not valid YAML"),
    ],
)  # fmt: skip
def test_what_no_tool_could_use_is_refused_with_its_place(tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(f"{text}\n{'' if text.startswith(('domains', '%')) else DOMAINS}")
    assert words in refused(tmp_path / "c.yaml")


def test_homes_of_nobody_are_names_like_others(tmp_path):
    (tmp_path / "c.yaml").write_text("model: ~nouser/x\n" + DOMAINS)
    assert load_config(tmp_path / "c.yaml").model.path == "~nouser/x"


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "n" * 300, "/"])
def test_only_files_are_read(path):
    assert path in refused(path)


def test_a_file_that_is_far_too_large_is_not_parsed(tmp_path):
    (tmp_path / "c.yaml").write_text("# " + "x" * (1 << 20) + "\n" + DOMAINS)
    assert "more than 1 MB" in refused(tmp_path / "c.yaml")


@pytest.mark.parametrize("override", ["training." + ".".join("a" * 3000) + "=1", "domains.math.reward.²=1", "a=[" * 99])
def test_overrides_are_no_way_around(tmp_path, override):
    (tmp_path / "c.yaml").write_text(DOMAINS)
    assert "--set" in refused(tmp_path / "c.yaml", override)


@pytest.mark.parametrize("value", [10**400, b"x", {1, 2}, "\ud800", {1: 2}, float])
def test_data_that_no_file_could_hold_is_refused(value):
    with pytest.raises(ConfigError, match="training"):
        parse_config({"domains": {"math": {"source": "pocket"}}, "training": {"x": value}})


def test_long_lists_of_problems_are_cut(tmp_path):
    (tmp_path / "c.yaml").write_text(DOMAINS + "".join(f"key{i}: 1\n" for i in range(200)))
    assert len(refused(tmp_path / "c.yaml").splitlines()) == 52


@pytest.mark.slow
def test_any_file_is_read_or_refused(tmp_path):
    path = tmp_path / "c.yaml"

    def attack(rng):
        if rng.random() < 0.5:
            content = yaml.safe_dump(mutated(TREE, rng), allow_unicode=True).encode("utf-8", "surrogatepass")
        else:
            content = damaged(TEXT.encode(), rng)
        path.write_bytes(content)
        load_config(path).to_yaml().encode()

    assert survey(attack) > 40

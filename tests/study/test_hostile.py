"""Study files that no friend wrote: refused with our own errors before anything is built, or read."""

import math

import pytest
import yaml

from counterpoint.errors import ConfigError
from counterpoint.study.load import load_study
from hostile import damaged, mutated, survey

BASE = {
    "model": "pocket",
    "domains": {"math": {"source": "pocket"}, "code": {"source": "pocket"}},
    "training": {"max_steps": 4, "num_generations": 4},
}
TREE = {
    "name": "s",
    "config": BASE,
    "seeds": 2,
    "reference": "mixed",
    "parallel": 1,
    "rows": {
        "base": "base",
        "mixed": "mixed",
        "mgs": {"strategy": "mgs", "set": {"domains.math.share": 2}, "seeds": [0, 1]},
        "orders": {"strategy": "sequential", "orders": "all"},
        "experts": {"kind": "experts", "steps": 2},
        "merged": {"kind": "merge", "of": "experts", "method": "ties", "scale": [0.5, 1], "density": 0.2},
        "refreshed": {"kind": "refresh", "of": "orders-math-code", "domain": "math", "options": {"steps": 2}},
    },
}


def refused(tmp_path, **changes):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(TREE | changes))
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    return str(caught.value)


def test_the_tree_itself_is_a_study(tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(TREE))
    assert len(load_study(tmp_path / "s.yaml").rows) == 8


@pytest.mark.parametrize("number", [1001, 10**9, 10**18])
def test_seeds_without_end_are_refused_with_their_number(tmp_path, number):
    assert f"found {number}" in refused(tmp_path, seeds=number)
    row = {"strategy": "mgs", "seeds": number}
    assert f"rows.a.seeds: should be at most 1000 seeds, found {number}" in refused(tmp_path, rows={"a": row})


@pytest.mark.parametrize("count", [7, 11, 3000])
def test_all_orders_of_many_domains_are_counted_before_they_are_made(tmp_path, count):
    domains = {f"d{index}": {"source": {"type": "pocket", "task": "math"}} for index in range(count)}
    rows = {"mixed": "mixed", "s": {"strategy": "sequential", "orders": "all"}}
    assert f"{count} domains stands for {count}! rows" in refused(
        tmp_path, config=BASE | {"domains": domains}, rows=rows
    )


def test_rows_are_bounded_whatever_they_are_made_of(tmp_path):
    domains = {f"d{index}": {"source": {"type": "pocket", "task": "math"}} for index in range(6)}
    rows = {f"s{index}": {"strategy": "sequential", "orders": "all"} for index in range(2)}
    found = refused(tmp_path, config=BASE | {"domains": domains}, rows=rows)
    assert f"rows: {2 * math.factorial(6)} rows, at most 1000" in found


@pytest.mark.parametrize(
    "config",
    [
        {"domains": 0.5},
        {"domains": ["a"]},
        BASE | {"training": "x"},
        BASE | {"run": "z"},
        BASE | {"model": 5, "evaluation": "y"},
        "~nouser/x.yaml",
        "x" * 300,
        "a\0b",
        "/dev/zero",
        "s.yaml",
    ],
)
def test_a_base_configuration_of_any_kind_is_checked(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, config=config)


@pytest.mark.parametrize("kind", [{}, [], 5, {"a": 1}, "refreshed"])
def test_a_kind_of_any_type_is_checked(tmp_path, kind):
    assert "rows.a.kind: unknown kind" in refused(tmp_path, rows={"a": {"kind": kind}, "mixed": "mixed"})


@pytest.mark.slow
def test_any_study_is_read_or_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, text = tmp_path / "s.yaml", yaml.safe_dump(TREE).encode()

    def attack(rng):
        if rng.random() < 0.7:
            content = yaml.safe_dump(mutated(TREE, rng)).encode("utf-8", "surrogatepass")
        else:
            content = damaged(text, rng)
        path.write_bytes(content)
        load_study(path).to_yaml().encode()

    assert survey(attack) > 20

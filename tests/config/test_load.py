"""Loading a file: shorthands, defaults, paths, overrides, variables."""

import re
import subprocess
import sys

import pytest
import yaml

from counterpoint.config import FileSource, HubSource, PocketSource, config_schema, load_config, parse_config
from counterpoint.errors import ConfigError
from counterpoint.surgery import GROUPINGS, resolve_strategy

SMALL = """
domains:
  math: {source: pocket}
  spell:
    source: ./data/words.jsonl
    reward: text
    share: 2
training:
  learning_rate: 1e-5
"""


def write(folder, text, name="run.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def test_defaults_and_shorthands(tmp_path):
    config = load_config(write(tmp_path, SMALL))
    assert config.model.path == "pocket"
    assert config.strategy.name == "mgs"
    assert list(config.domains) == ["math", "spell"]
    assert config.domains["math"].source == PocketSource(type="pocket", task="math")
    assert config.domains["math"].reward[0].name == "pocket"
    assert isinstance(config.domains["spell"].source, FileSource)
    assert config.domains["spell"].reward[0].weight == 1.0
    assert config.training == {"learning_rate": 1e-5}
    assert config.run.name == "run-mgs"


def test_a_run_is_named_by_its_file_and_strategy(tmp_path):
    assert load_config(write(tmp_path, SMALL, "pocket-mgs.yaml")).run.name == "pocket-mgs"
    assert load_config(write(tmp_path, SMALL, "my words.yaml"), ["strategy=mixed"]).run.name == "my-words-mixed"
    assert load_config(write(tmp_path, SMALL), ["run.name=x"]).run.name == "x"


@pytest.mark.parametrize(
    ("written", "kind", "path"),
    [
        ("openai/gsm8k", HubSource, "openai/gsm8k"),
        ("rows.csv", FileSource, "rows.csv"),
        ("data/rows.jsonl.gz", FileSource, "data/rows.jsonl.gz"),
        ("owner/name.jsonl", FileSource, "owner/name.jsonl"),
        ("../rows", FileSource, "../rows"),
        ("~/rows", FileSource, "~/rows"),
    ],
)
def test_source_shorthand(written, kind, path):
    source = parse_config({"domains": {"a": {"source": written, "reward": "text"}}}).domains["a"].source
    assert (type(source), source.path) == (kind, path)


def test_rewards_may_be_a_name_a_mapping_or_a_list():
    def rewards(written):
        return parse_config({"domains": {"a": {"source": "a/b", "reward": written}}}).domains["a"].reward

    assert [r.name for r in rewards("math")] == ["math"]
    assert [(r.name, r.weight) for r in rewards({"name": "math", "weight": 2})] == [("math", 2.0)]
    assert [r.label or r.name for r in rewards(["math", {"name": "math", "label": "again"}])] == ["math", "again"]
    assert [r.name for r in rewards("my.rewards:polite")] == ["my.rewards:polite"]


@pytest.mark.parametrize(
    ("strategy", "label", "spec"),
    [
        ("pcgrad", "pcgrad", "pcgrad"),
        (
            {"grouping": "module", "weighting": "upgrad"},
            "module-upgrad",
            {"grouping": "module", "weighting": "upgrad"},
        ),
        (
            {"grouping": "layer", "weighting": "cagrad", "options": {"c": 0.4}},
            "layer-cagrad-c-0.4",
            {"grouping": "layer", "weighting": "cagrad", "options": {"c": 0.4}},
        ),
        ({"name": "mgs", "protect": []}, "mgs", "mgs"),
        ("mgs-shuffled", "mgs-shuffled", "mgs-shuffled"),
        (
            {"grouping": "global", "weighting": "static", "options": {"weights": {"math": 2.0, "qa": 0.5}}},
            "global-static-math-2-qa-0.5",
            {"grouping": "global", "weighting": "static", "options": {"weights": {"math": 2.0, "qa": 0.5}}},
        ),
        (
            {"name": "mgs", "protect": ["math"]},
            "mgs-protect-math",
            {"name": "mgs", "protect": ["math"]},
        ),
        (
            {"name": "mgs-significant", "options": {"level": 0.01}},
            "mgs-significant-level-0.01",
            {"name": "mgs-significant", "options": {"level": 0.01}},
        ),
        (
            {"grouping": "layer", "weighting": "ema", "options": {"decay": 0.5}, "protect": ["math", "qa"]},
            "layer-ema-decay-0.5-protect-math-qa",
            {"grouping": "layer", "weighting": "ema", "options": {"decay": 0.5}, "protect": ["math", "qa"]},
        ),
    ],
)
def test_strategies(strategy, label, spec):
    domains = {name: {"source": "pocket"} for name in ("math", "qa", "code")}
    config = parse_config({"strategy": strategy, "domains": domains})
    assert (config.strategy.label, config.strategy.spec) == (label, spec)
    assert resolve_strategy(config.strategy.spec).grouping in GROUPINGS


def test_runs_that_differ_in_an_option_alone_have_different_names(tmp_path):
    path = write(tmp_path, SMALL)
    options = ["{}", "{level: 0.01}", "{level: 0.2}", "{level: 0.2000001}", "{decay: 0.2}", "{level: 0.2, decay: 0.2}"]
    written = [f"strategy={{name: mgs-significant, options: {option}}}" for option in options]
    names = [load_config(path, [strategy]).run.name for strategy in written]
    assert names[:2] == ["run-mgs-significant", "run-mgs-significant-level-0.01"]
    assert len(set(names)) == len(options)


def test_the_resolved_file_gives_the_same_configuration(tmp_path):
    text = SMALL + "strategy: {name: sequential, order: [math, spell, math], steps: 5}\nrun: {name: x}\n"
    first = load_config(write(tmp_path, text), ["domains.spell.prompt='${{x}} $${{PRICE}} {{a}}'"])
    again = load_config(write(tmp_path, first.to_yaml(), "other.yaml"))
    assert again == first
    assert again.to_yaml() == first.to_yaml()


def test_text_that_looks_like_something_else_survives_the_round_trip(tmp_path):
    texts = ["1e5", "1:30", "2020-01-01", "null", "yes", "${HOME}", "0x1f", "", "a: b", "é\n\u2028"]
    config = parse_config({"domains": {"math": {"source": "pocket"}}, "training": {"texts": texts}})
    again = load_config(write(tmp_path, config.to_yaml()))
    assert again.training == {"texts": texts}


def test_paths_are_found_beside_the_file_and_then_here(tmp_path, monkeypatch):
    beside, here = tmp_path / "configs", tmp_path / "here"
    (beside / "data").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    path = write(beside, "model: base\n" + SMALL)
    (beside / "base").mkdir()
    assert load_config(path).model.path == str(beside / "base")
    assert load_config(path).domains["spell"].source.path == str(beside / "data" / "words.jsonl")
    (here / "data").mkdir()
    (here / "data" / "words.jsonl").touch()
    assert load_config(path).domains["spell"].source.path == str(here / "data" / "words.jsonl")
    (beside / "data" / "words.jsonl").touch()
    assert load_config(path).domains["spell"].source.path == str(beside / "data" / "words.jsonl")


def test_overrides_write_over_the_file_and_reach_into_shorthands(tmp_path):
    config = load_config(
        write(tmp_path, "model: pocket\n" + SMALL),
        [
            "training.max_steps=3",
            "training.learning_rate=2e-4",
            "model.dtype=bfloat16",
            "strategy=mixed",
            "domains.math.source.size=7",
            "domains.spell.reward.0.weight=0.5",
            "domains.extra={source: pocket}",
            "domains.extra.source.task=qa",
            "run.keep=null",
        ],
    )
    assert config.training == {"learning_rate": 2e-4, "max_steps": 3}
    assert (config.model.path, config.model.dtype) == ("pocket", "bfloat16")
    assert config.domains["math"].source == PocketSource(type="pocket", task="math", size=7)
    assert config.domains["spell"].reward[0].weight == 0.5
    assert config.domains["extra"].source == PocketSource(type="pocket", task="qa")
    assert config.run.keep is None
    assert config.run.name == "run-mixed"


def test_variables_are_filled_in_and_typed_as_yaml(tmp_path, monkeypatch):
    monkeypatch.setenv("WORDS", "/data/words.jsonl")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOWHERE", raising=False)
    text = """
domains:
  a: {source: "${WORDS}", reward: text, prompt: "$${WORDS} ${EMPTY:-x}"}
training: {max_steps: "${NOWHERE:-12}"}
run:
  seed: ${NOWHERE:-3}
"""
    config = load_config(write(tmp_path, text))
    assert config.domains["a"].source.path == "/data/words.jsonl"
    assert config.domains["a"].prompt == "${WORDS} x"
    assert config.training["max_steps"] == "12"  # quoted, so text
    assert config.run.seed == 3


def test_a_list_of_sources(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "words.jsonl").touch()
    monkeypatch.setenv("DATA", "data")
    text = """
domains:
  a:
    source:
      - {type: file, path: "${DATA}/words.jsonl", share: 3}
      - {type: hub, path: owner/name, share: 1}
    reward: text
    evaluation: {source: ["${DATA}/words.jsonl", owner/test]}
  math: {source: [pocket, {type: pocket, task: qa}]}
"""
    config = load_config(
        write(tmp_path, text), ["domains.a.source.1.share=2", "domains.a.evaluation.source.1.split=test"]
    )
    words = str(tmp_path / "data" / "words.jsonl")
    assert config.domains["a"].source == (
        FileSource(type="file", path=words, share=3),
        HubSource(type="hub", path="owner/name", share=2),
    )
    assert config.domains["a"].evaluation.source == (
        FileSource(type="file", path=words),
        HubSource(type="hub", path="owner/test", split="test"),
    )
    assert [source.task for source in config.domains["math"].source] == ["math", "qa"]
    assert config.domains["math"].reward[0].name == "pocket"
    kept = yaml.safe_load(config.to_yaml())["domains"]["a"]
    folder = f"{tmp_path}/${{DATA}}/words.jsonl"
    assert kept["source"][0]["path"] == kept["evaluation"]["source"][0]["path"] == folder
    (tmp_path / "kept.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "kept.yaml").domains == config.domains


def test_merge_keys_and_aliases(tmp_path):
    text = """
domains:
  a: &a {source: owner/name, reward: text, share: 2}
  b:
    <<: *a
    share: 3
"""
    config = load_config(write(tmp_path, text))
    assert [(d.source.path, d.share) for d in config.domains.values()] == [("owner/name", 2.0), ("owner/name", 3.0)]


def test_schema_is_json_schema_and_knows_the_shorthands():
    schema = config_schema()
    assert schema["additionalProperties"] is False
    assert {"type": "string"} in schema["properties"]["model"]["anyOf"]
    domain = schema["$defs"]["DomainConfig"]
    one, several = domain["properties"]["source"]["oneOf"]
    assert {"type": "string"} in one["anyOf"]
    assert several["items"] == one
    assert domain["required"] == ["source"]
    described = [field for section in schema["$defs"].values() for field in section["properties"].values()]
    assert all(field.get("description") for field in described)


def test_reading_a_configuration_never_imports_torch(tmp_path):
    path = write(tmp_path, SMALL)
    code = (
        "import sys; from counterpoint.config import load_config; import counterpoint.runs; "
        "load_config(sys.argv[1]); bad = {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules); "
        "assert not bad, bad"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0


def test_an_alias_bomb_is_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8)]
    with pytest.raises(ConfigError, match="more than 100000 values; an alias may contain itself or many others"):
        load_config(write(tmp_path, "\n".join(lines)))
    with pytest.raises(ConfigError, match="nested more than 64 deep; an alias may contain itself"):
        load_config(write(tmp_path, "domains: &d {a: *d}"))


def test_yaml_is_plain_data():
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load("!!python/object/apply:os.system [ls]")


def test_metrics_are_rewards_without_a_weight():
    domain = {"source": "a/b", "reward": "text", "metrics": ["repetition", {"name": "length", "label": "short"}]}
    config = parse_config({"domains": {"a": domain}})
    assert [(metric.name, metric.label) for metric in config.domains["a"].metrics] == [
        ("repetition", None),
        ("length", "short"),
    ]
    for metrics, expected in (
        ([{"name": "length", "weight": 2}], "domains.a.metrics.0.weight: unknown key"),
        (["copyin"], "domains.a.metrics.0: unknown reward 'copyin': did you mean 'copying'"),
        (["copying", "copying"], "the reward 'copying' stands here twice"),
    ):
        with pytest.raises(ConfigError, match=re.escape(expected)):
            parse_config({"domains": {"a": domain | {"metrics": metrics}}})


def test_the_module_of_a_reward_beside_the_file_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "here" / "far").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here" / "my_near.py").touch()
    file = tmp_path / "here" / "c.yaml"
    rewards = "[my_near:a, math, absent:b, {name: 'my_far:c', folder: far}]"
    file.write_text(f"domains: {{a: {{source: a/b, reward: {rewards}, metrics: 'my_near:d'}}}}")
    monkeypatch.chdir(tmp_path / "elsewhere")
    domain = load_config("../here/c.yaml").domains["a"]
    here = str(tmp_path / "here")
    assert [reward.folder for reward in domain.reward] == [here, None, None, f"{here}/far"]
    assert domain.metrics[0].folder == here
    # what a run keeps of it says the same
    (tmp_path / "elsewhere" / "kept.yaml").write_text(load_config(file).to_yaml())
    assert load_config("kept.yaml").domains["a"].reward == domain.reward

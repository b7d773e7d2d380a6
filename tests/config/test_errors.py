"""What a user reads when a file is wrong: every problem at once, each with its place and what to do."""

import pytest

from counterpoint.config import load_config, parse_config
from counterpoint.errors import ConfigError

GOOD = "domains:\n  math: {source: pocket}\n"


def problems(folder, text, *overrides):
    path = folder / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    first, *lines = str(caught.value).splitlines()
    assert first == f"The configuration has {len(lines)} problem{'' if len(lines) == 1 else 's'}:"
    return [line.strip().removeprefix(str(folder) + "/") for line in lines]


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    text = """\
model: pocket
strategy: {name: sequential, order: [math, cod]}
domains:
  math:
    source: pocket
    shre: 2
  Code:
    source: {type: file, pth: x.jsonl}
    reward: [mth, {nme: format}]
    share: -1
  code:
    source: nothing
    reward: text
    share: 1
    share: 2
  qa: {source: {path: x}, columns: [a], reward: text}
training:
  output_dir: ${NOWHERE}
evaluation: {prompts: many, sample: 3}
run: {seed: -1}
"""
    found = problems(tmp_path, text, "run.keep=0", "evaluation.x", "model.dtype=int8", "run.seed.x=3")
    expected = [
        "c.yaml:2: strategy.order.1: unknown domain 'cod': did you mean 'code'?",
        "c.yaml:6: domains.math.shre: unknown key. did you mean 'share'?",
        "c.yaml:7: domains.Code: is no domain name. Use lower-case letters, digits, `_` and `-`.",
        "c.yaml:8: domains.Code.source.path: is missing. The file, looked for beside",
        "c.yaml:8: domains.Code.source.pth: unknown key. did you mean 'path'?",
        "c.yaml:9: domains.Code.reward.0: unknown reward 'mth': did you mean 'math'?",
        "c.yaml:9: domains.Code.reward.1.name: is missing.",
        "c.yaml:9: domains.Code.reward.1.nme: unknown key. did you mean 'name'?",
        "c.yaml:10: domains.Code.share: should be greater than 0, found -1.",
        "c.yaml:12: domains.code.source: expected a source, found 'nothing'.",
        "c.yaml:15: domains.code.share: written twice, first at",
        "c.yaml:16: domains.qa.source: needs a type. Write one of: file, hub, pocket, reasoning_gym.",
        "c.yaml:16: domains.qa.columns: expected a mapping, found ['a'].",
        "c.yaml:18: training.output_dir: the environment variable NOWHERE is not set. Set it, give a default as "
        "${NOWHERE:-value}, or write $${NOWHERE} for the text.",
        "c.yaml:18: training.output_dir: is set by counterpoint itself: the run directory is run.dir/run.name.",
        "c.yaml:19: evaluation.prompts: should be a valid integer, unable to parse string as an integer, found 'many'.",
        "c.yaml:19: evaluation.sample: unknown key. did you mean 'samples'?",
        "c.yaml:20: run.seed: should be greater than or equal to 0, found -1.",
        "--set evaluation.x: not of the form key=value",
        "--set run.seed.x=3: run.seed.x: cannot be set: run.seed is -1, not a mapping.",
        "--set model.dtype=int8: model.dtype: should be 'float32', 'bfloat16' or 'float16', found 'int8'.",
        "--set run.keep=0: run.keep: should be greater than 0, found 0.",
    ]
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("domains: {math: {source: pocket}", "c.yaml:1:33: not valid YAML: expected ',' or '}'"),
        ("a: b: c", "c.yaml:1:5: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "c.yaml:2:1: not valid YAML: but found another document"),
        ("\tdomains: {}", "c.yaml:1:1: not valid YAML: found character '\\t' that cannot start any token"),
        ("- a\n- b", "c.yaml: a configuration is a mapping with at least `domains:`, found list."),
        ("", "c.yaml: a configuration is a mapping with at least `domains:`, found nothing."),
        ("model: pocket", "c.yaml:1: domains: is missing."),
        ("domains: {}", "c.yaml:1: domains: Dictionary should have at least 1 item"),
        ("domains: {a: pocket}", "c.yaml:1: domains.a: expected a mapping, found 'pocket'."),
        ("domains: {math: {source: pocket, reward: []}}", "c.yaml:1: domains.math.reward: "),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, text, message):
    assert problems(tmp_path, text)[0].startswith(message)


def test_a_missing_and_an_unreadable_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing.yaml: there is no such configuration file. Give the path"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read .*it is a folder"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"cannot be read .*UTF-8"):
        load_config(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (
            "mgss",
            "strategy.name: unknown strategy 'mgss': did you mean 'mgs'? Known: mgs, mgs-ema, mgs-shuffled, mgs-signif",
        ),
        ("{grouping: modul, weighting: ones}", "strategy.grouping: unknown grouping 'modul': did you mean 'module'?"),
        (
            "{grouping: module, weighting: upgrd}",
            "strategy.weighting: unknown weighting 'upgrd': did you mean 'upgrad'?",
        ),
        ("{grouping: module}", "strategy: needs a name, or grouping and weighting together."),
        ("{}", "strategy: needs a name, or grouping and weighting together."),
        ("{name: mgs, weighting: ones}", "strategy: has a name and a grouping or weighting."),
        ("{name: mgs, order: [math]}", "strategy.order: belongs to the strategy 'sequential', found 'mgs'. Remove it."),
        ("{name: mgs, steps: 4}", "strategy.steps: belongs to the strategy 'sequential', found 'mgs'. Remove it."),
        ("{name: sequential, order: []}", "strategy.order: names no domain."),
        ("{name: mgs, protect: [mth]}", "strategy.protect.0: unknown domain 'mth': did you mean 'math'? Known: math"),
        ("{name: mgs, protect: [math]}", "strategy.protect: lists every domain, so that none is left to give way."),
        ("{name: mgs, protect: math}", "strategy.protect: should be a valid list, found 'math'."),
        (
            "{name: mgs-ema, options: {decay: 1}}",
            "strategy.options.decay: should be less than 1, found 1. Weight of a step against the next one;",
        ),
        (
            "{name: mgs-significant, options: {levl: 1}}",
            "strategy.options.levl: is no option of 'significant': did you",
        ),
        (
            "{name: mgs-significant, options: {level: 5}}",
            "strategy.options.level: should be less than 0.5, found 5. Share of pairs",
        ),
        (
            "{grouping: global, weighting: static}",
            "strategy.options.weights: is missing, and 'static' needs it. Domain and weight, as in {math: 2.0};",
        ),
        (
            "{grouping: global, weighting: static, options: {weights: 2}}",
            "strategy.options.weights: should be a mapping, found 2. Domain and weight, as in {math: 2.0};",
        ),
        (
            "{grouping: global, weighting: static, options: {weights: {mth: 2}}}",
            "strategy.options.weights.mth: unknown domain 'mth': did you mean 'math'?",
        ),
        (
            "{grouping: global, weighting: static, options: {weights: {math: 0}}}",
            "strategy.options.weights.math: should be greater than 0, found 0.",
        ),
        (
            "{grouping: global, weighting: static, options: {weights: {math: .inf}}}",
            "strategy.options.weights.math: should be less than inf, found inf.",
        ),
        (
            "{name: mgs-shuffled, options: {seed: 1}}",
            "strategy.options.seed: is no option of 'shuffled': it has none. Remove it.",
        ),
        ("{name: mgs, options: {c: 1}}", "strategy.options.c: is no option of 'pcgrad': it has none. Remove it."),
        (
            "{grouping: module, weighting: cagrad, options: {c: -1}}",
            "strategy.options.c: should be greater than or equal to 0, found -1. How far from the mean",
        ),
        (
            "{grouping: module, weighting: aligned_mtl, options: {scale_mode: max}}",
            "strategy.options.scale_mode: should be 'min', 'median' or 'rmse', found 'max'.",
        ),
        (
            "{grouping: module, weighting: upgrad, options: {c: 1}}",
            "strategy.options.c: is no option of 'upgrad': it has none. Remove it.",
        ),
        ("a:b", "strategy.name: unknown strategy 'a:b': Known: mgs, mgs-ema"),
        ("{name: sequential, weighting: ones}", "strategy.weighting: belongs to strategies that combine gradients"),
        ("{name: mgs, options: {protect: [math]}}", "strategy.options.protect: is no option of 'pcgrad'. Write it as"),
    ],
)
def test_strategies_that_do_not_fit(tmp_path, strategy, message):
    (found,) = problems(tmp_path, f"strategy: {strategy}\n{GOOD}")
    assert found.startswith(f"c.yaml:1: {message}")


@pytest.mark.parametrize("strategy", ["name: mixed", "grouping: module, weighting: upgrad"])
def test_what_cannot_protect_says_so(tmp_path, strategy):
    text = f"strategy: {{{strategy}, protect: [math]}}\n{GOOD}  qa: {{source: pocket}}\n"
    (found,) = problems(tmp_path, text)
    assert found.startswith("c.yaml:1: strategy.protect: belongs to the weightings ema, pcgrad, significant, found '")


def test_a_domain_protected_twice(tmp_path):
    text = f"strategy: {{name: mgs, protect: [math, math]}}\n{GOOD}  qa: {{source: pocket}}\n"
    (found,) = problems(tmp_path, text)
    assert found == "c.yaml:1: strategy.protect: lists 2 domains. Give at most 7, each of them once."


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("seed", "run.seed"),
        ("save_total_limit", "run.keep"),
        ("eval_strategy", "evaluation"),
        ("reward_weights", "domains.*.reward.weight"),
        ("max_prompt_length", "max_prompt_tokens"),
        ("logging_steps", "metrics.jsonl"),
    ],
)
def test_training_keys_that_are_ours_name_the_key_to_use(tmp_path, key, instead):
    (found,) = problems(tmp_path, f"{GOOD}training:\n  {key}: 1\n")
    assert found.startswith(f"c.yaml:4: training.{key}: is set by counterpoint itself: ")
    assert instead in found


def test_two_rewards_of_one_name_need_a_label(tmp_path):
    (found,) = problems(tmp_path, "domains:\n  a:\n    source: a/b\n    reward:\n    - text\n    - text\n")
    assert found == (
        "c.yaml:6: domains.a.reward.1: the reward 'text' stands here twice. Give one of them a label of its own."
    )


def test_a_reward_is_needed_unless_the_source_brings_one(tmp_path):
    (found,) = problems(tmp_path, "domains:\n  a: {source: owner/name}\n")
    assert found.startswith("c.yaml:2: domains.a.reward: is missing. The reward: a name, a mapping, or a list of them.")


def test_an_override_replaces_what_was_wrong(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"{GOOD}run: {{seed: -1}}\n")
    assert load_config(path, ["run.seed=1"]).run.seed == 1


def test_overrides_name_themselves(tmp_path):
    found = problems(tmp_path, GOOD, "training=[", "=3", "strategy=mgss", "domains.math.reward.name=x")
    assert found[0].startswith("--set training=[: training: not valid YAML")
    assert found[1].startswith("--set =3: not of the form key=value")
    assert found[2].startswith("--set strategy=mgss: strategy.name: unknown strategy 'mgss'")
    assert found[3].startswith("--set domains.math.reward.name=x: domains.math.reward: unknown reward 'x'")


def test_plain_data_is_checked_as_a_file_is():
    with pytest.raises(ConfigError, match=r"config: strategy\.name: unknown strategy 'x'"):
        parse_config({"strategy": "x", "domains": {"math": {"source": "pocket"}}})


def test_errors_hold_no_long_values(tmp_path):
    (found,) = problems(tmp_path, f"{GOOD}run: {{seed: {'x' * 5000}}}\n")
    assert len(found) < 300


def test_an_unset_variable_is_one_problem_not_two(tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    (found,) = problems(tmp_path, f"{GOOD}run: {{seed: '${{NOWHERE}}'}}\n")
    assert found.startswith("c.yaml:3: run.seed: the environment variable NOWHERE is not set.")

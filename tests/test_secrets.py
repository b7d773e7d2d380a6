"""What a configuration takes from the environment is used, and stands in no file and in no line that is shown."""

import base64
import hashlib
import json
import pickle
import zipfile

import pytest
import yaml

from commands import Command
from counterpoint.config import load_config, parse_config
from counterpoint.errors import ConfigError, CounterpointError
from counterpoint.masking import is_secret_name, masked_command, masked_data, masked_names

SECRET = 'sk-"7Q\\x/+Zé-hunter2'
NAME = "COUNTERPOINT_TEST_SECRET"
PLAIN = "sk-plain-and-long-7351"
SHORT = "zq9!"

REWARD = """
import hashlib, os, pathlib, signal
calls = 0

def _note(key):
    with open("keys.txt", "a") as file:
        file.write(hashlib.sha256(key.encode()).hexdigest() + "\\n")

def judged(completions, api_key, nested, **_):
    global calls
    calls += 1
    assert nested["headers"]["Authorization"] == "Bearer " + api_key
    _note(api_key)
    if os.environ.get("KILL_AT") == str(calls):
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("FAIL_AT") == str(calls):
        print("using", api_key)
        raise ValueError(f"401: the key {api_key} or {api_key!r} is wrong")
    return [float(len(c) % 3) for c in completions]
"""


def settings(folder):
    return {
        "model": "pocket",
        "strategy": "mgs",
        "domains": {
            "math": {
                "source": "pocket",
                "reward": {
                    "name": "judging:judged",
                    "options": {
                        "api_key": f"${{{NAME}}}",
                        "nested": {"headers": {"Authorization": f"Bearer ${{{NAME}}}"}, "plain": "${SHORT_PASSWORD}"},
                    },
                },
            },
            "code": {"source": "pocket"},
        },
        "training": {
            "hub_token": "${COUNTERPOINT_PLAIN}",
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "num_generations": 4,
            "max_completion_length": 6,
            "learning_rate": "${LEARNING_RATE}",
        },
        "evaluation": {"prompts": 2, "samples": 1, "greedy": False},
        "run": {"dir": str(folder / "runs"), "name": "secret", "save_every": 2, "samples": 2, "device": "cpu"},
    }


def environment(**more):
    return {NAME: SECRET, "COUNTERPOINT_PLAIN": PLAIN, "SHORT_PASSWORD": SHORT, "LEARNING_RATE": "1e-3", **more}


def run(folder, *arguments, status=0, **more):
    output = folder.parent / f"{folder.name}.output"
    found, told = Command(*arguments, output=output, folder=folder, environment=environment(**more)).wait()
    assert found == status, told
    assert_clean(told, "what was printed")
    return told


def forms(secret):
    texts = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
    texts |= {yaml.safe_dump(secret).strip().strip("'\"").replace("\n...", "")}
    encoded = {text.encode(code) for text in texts for code in ("utf-8", "utf-16-le")}
    return encoded | {base64.b64encode(text.encode()) for text in texts}


def assert_clean(content, what):
    raw = content.encode() if isinstance(content, str) else content
    for secret in (SECRET, PLAIN, SHORT):
        for form in forms(secret):
            assert form not in raw, f"{what} holds {form!r}"


def assert_folder_clean(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        assert_clean(path.read_bytes(), path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    assert_clean(archive.read(name), f"{path}:{name}")
    return {path.name for path in files}


def write(folder, data, name="secret.yaml"):
    (folder / "judging.py").write_text(REWARD)
    (folder / name).write_text(yaml.safe_dump(data, sort_keys=False))
    return folder / name


def keys_used(folder):
    lines = (folder / "keys.txt").read_text().splitlines()
    (folder / "keys.txt").unlink()
    return set(lines)


@pytest.mark.slow
def test_a_run_killed_and_resumed_and_reported_holds_no_secret(tmp_path):
    right = {hashlib.sha256(SECRET.encode()).hexdigest()}
    config = write(tmp_path, settings(tmp_path))
    home = tmp_path / "runs" / "secret"
    run(tmp_path, "config", "check", config, "--show")
    run(
        tmp_path,
        "train",
        config,
        "--set",
        f"domains.math.reward.options.nested.token=${{{NAME}}}",
        status=-9,
        KILL_AT="4",
    )
    assert keys_used(tmp_path) == right
    assert "training_args.bin" in assert_folder_clean(home)
    kept = yaml.safe_load((home / "config.yaml").read_text())
    assert kept["training"]["hub_token"] == "${COUNTERPOINT_PLAIN}"
    assert kept["training"]["learning_rate"] == "${LEARNING_RATE}"
    assert kept["domains"]["math"]["reward"][0]["options"]["api_key"] == f"${{{NAME}}}"
    told = run(tmp_path, "train", "--resume", home, status=1, **{NAME: ""})
    assert f"variable {NAME} is not set" in told.replace("\n", " ")
    told = run(tmp_path, "train", "--resume", home, status=1, FAIL_AT="1")
    assert "401: the key" in told
    assert keys_used(tmp_path) == right
    run(tmp_path, "train", "--resume", home)
    assert keys_used(tmp_path) == right
    run(tmp_path, "report", home)
    run(tmp_path, "eval", home / "config.yaml", "--output", home / "again.jsonl")
    model, again = home / "checkpoints" / "step-4", tmp_path / "runs" / "again"
    short = ("--steps", "1", "--every", "1", "--former", "5")
    run(tmp_path, "recover", home, "--how", "refresh", "--after", model, "--domain", "math", *short, "--out", again)
    assert keys_used(tmp_path) == right
    names = assert_folder_clean(tmp_path / "runs")
    assert {"report.html", "environment.json", "training_args.bin", "samples.jsonl"} <= names


@pytest.mark.slow
def test_a_study_holds_no_secret(tmp_path):
    base = settings(tmp_path)
    base["training"] |= {"max_steps": 2}
    del base["run"]["dir"], base["run"]["name"]
    del base["domains"]["math"]["reward"]["options"]["api_key"]
    rows = {
        "mixed": {"strategy": "mixed", "set": {"domains.math.reward.options.api_key": f"${{{NAME}}}"}},
        "refused": {"strategy": "mgs"},
    }
    study = write(
        tmp_path, {"name": "s", "config": base, "seeds": [0], "reference": "mixed", "rows": rows}, "study.yaml"
    )
    base["domains"]["math"]["reward"]["options"]["api_key"] = "${COUNTERPOINT_PLAIN}"
    told = run(tmp_path, "study", study, "--dir", tmp_path / "studies", status=1)
    assert "refused-seed-0 failed" in told  # its api_key is not what Authorization holds
    names = assert_folder_clean(tmp_path / "studies")
    assert {"study.yaml", "study.json", "study.html", "mixed-seed-0.yaml", "mixed-seed-0.log"} <= names


FREE = [
    ("training.hub_token", "sk-literal"),
    ("domains.math.reward.0.options.api_key", "sk-literal"),
    ("domains.math.reward.0.options.headers", {"x-api-key": ["sk-literal"]}),
    ("domains.math.reward.0.options.openaiApiKey", "sk-literal"),
    ("domains.math.reward", {"name": "judging:judged", "options": {"credentials": {"user": "sk-literal"}}}),
    ("domains.math.source", {"type": "reasoning_gym", "task": "chain_sum", "options": {"password": "sk-literal"}}),
    ("strategy.options", {"secret": "sk-literal"}),
    ("training.hub_token", "${COUNTERPOINT_NOT_SET:-sk-literal}"),
]


@pytest.mark.parametrize(("key", "value"), FREE)
def test_a_secret_that_is_written_out_is_refused_and_not_shown(key, value, tmp_path):
    data = settings(tmp_path)
    data["training"] = {"max_steps": 1}
    data["domains"]["math"]["reward"] = [{"name": "judging:judged"}]
    path = write(tmp_path, data)
    written = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    with pytest.raises(ConfigError, match="looks like a secret") as told:
        load_config(path, [f"{key}={written}"])
    assert "sk-literal" not in str(told.value)
    assert key in str(told.value)


def test_a_literal_in_the_file_is_refused_with_its_line(tmp_path):
    data = settings(tmp_path)
    data["training"] = {"hub_token": "sk-literal"}
    data["domains"]["math"]["reward"] = "text"
    with pytest.raises(ConfigError, match=r"secret\.yaml:\d+: training\.hub_token: looks like a secret") as told:
        load_config(write(tmp_path, data))
    assert "sk-literal" not in str(told.value)
    with pytest.raises(ConfigError, match="looks like a secret"):
        parse_config(data)


def test_what_only_sounds_like_a_secret_is_taken(tmp_path, monkeypatch):
    options = {
        "max_tokens": 5,
        "keywords": ["a"],
        "key_layers": "x",
        "tokenizer": "y",
        "token": True,
        "key": 3,
        "answer_key": "z",
        "eos_token": "</s>",
        "api_key": "",
        "password": None,
        "stop_tokens": ["a"],
        "secrets": [],
    }
    data = settings(tmp_path)
    data["training"] = {"max_steps": 1}
    data["domains"] = {
        "token": {"source": "pocket", "reward": {"name": "judging:judged", "options": options}},
        "key": {
            "source": {"type": "pocket", "task": "math"},
            "columns": {"answer": "a", "key": "b"},
            "reward": "text",
            "filter": {"token": "c"},
        },
    }
    config = load_config(write(tmp_path, data))
    assert config.domains["token"].reward[0].options == options
    path = tmp_path / "again.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config


def test_every_place_of_a_variable_is_kept_and_read_again(tmp_path, monkeypatch):
    text = """
model: ${MODEL}
strategy: ${STRATEGY}
max_prompt_tokens: ${LENGTH:-100}
domains:
  a:
    source: ${DATA}/words.jsonl
    prompt: "${WORD} $${WORD} {answer}"
    reward: ${REWARD}
    share: ${SHARE}
  b:
    source: "${DATA}/words.jsonl"
    reward: ["${REWARD}", {name: length, weight: 2, options: {maximum: "${LENGTH}"}}]
  c:
    source: ./words.jsonl
    system: &s "${WORD}${WORD}"
    reward: {name: text, options: {mode: "${MODE}"}}
    filter: {x: *s}
training:
  max_steps: 7
  hub_token: "${TOKEN}"
  flag: ${FLAG}
  nothing: ${NOTHING}
  texts:
  - a
  - "${ZIP}"
  - ${ZIP}
run: {name: r}
"""
    values = {
        "MODEL": "pocket",
        "STRATEGY": "mixed",
        "DATA": "data",
        "WORD": "wörd: 'x'",
        "REWARD": "text",
        "SHARE": "2",
        "LENGTH": "77",
        "MODE": "exact",
        "TOKEN": "tok",
        "FLAG": "true",
        "NOTHING": "null",
        "ZIP": "01234",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "data").mkdir()
    for folder in (tmp_path, tmp_path / "data"):
        (folder / "words.jsonl").write_text('{"answer": "a"}\n')
    (tmp_path / "c.yaml").write_text(text)
    config = load_config(tmp_path / "c.yaml", ["training.seed_text=${ZIP}", "training.max_steps=8"])
    assert config.training == {
        "max_steps": 8,
        "hub_token": "tok",
        "flag": True,
        "nothing": None,
        "texts": ["a", "01234", 1234],
        "seed_text": 1234,
    }
    kept = config.to_yaml()
    (tmp_path / "kept.yaml").write_text(kept)
    assert load_config(tmp_path / "kept.yaml").model_dump() == config.model_dump()
    plain = yaml.safe_load(kept)
    assert plain["model"]["path"] == "${MODEL}"
    assert plain["strategy"]["name"] == "${STRATEGY}"
    assert plain["max_prompt_tokens"] == "${LENGTH}"
    assert plain["domains"]["a"]["prompt"] == "${WORD} $${WORD} {answer}"
    assert plain["domains"]["a"]["share"] == "${SHARE}"
    assert plain["domains"]["a"]["source"]["path"] == f"{tmp_path}/${{DATA}}/words.jsonl"
    assert [reward["name"] for reward in plain["domains"]["b"]["reward"]] == ["${REWARD}", "length"]
    assert plain["domains"]["c"]["filter"] == {"x": "${WORD}${WORD}"}
    assert plain["training"]["texts"] == ["a", "${ZIP}", "${ZIP}"]
    assert plain["training"]["max_steps"] == 8
    monkeypatch.setenv("TOKEN", "another")
    assert load_config(tmp_path / "kept.yaml").training["hub_token"] == "another"
    monkeypatch.delenv("LENGTH")
    with pytest.raises(ConfigError, match="variable LENGTH is not set"):
        load_config(tmp_path / "kept.yaml")


def test_a_default_is_a_text_of_the_file(tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    (tmp_path / "c.yaml").write_text(
        "domains: {math: {source: pocket}}\ntraining:\n  max_steps: '${NOWHERE:-12}'\n  lr: ${NOWHERE:-3}\n"
    )
    assert yaml.safe_load(load_config(tmp_path / "c.yaml").to_yaml())["training"] == {"max_steps": "12", "lr": 3}


def test_a_value_that_was_changed_is_not_put_back(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPS", "5")
    (tmp_path / "c.yaml").write_text("domains: {math: {source: pocket}}\ntraining:\n  max_steps: ${STEPS}\n")
    config = load_config(tmp_path / "c.yaml")
    changed = parse_config(config.model_dump(mode="json") | {"training": {"max_steps": 6}}, like=config)
    assert yaml.safe_load(changed.to_yaml())["training"] == {"max_steps": 6}
    assert yaml.safe_load(config.to_yaml())["training"] == {"max_steps": "${STEPS}"}


def test_from_python_a_secret_is_named_too(monkeypatch):
    monkeypatch.setenv(NAME, SECRET)
    data = {"domains": {"math": {"source": "pocket"}}, "training": {"hub_token": f"${{{NAME}}}", "text": "${HOME}"}}
    config = parse_config(data)
    assert config.training == {"hub_token": SECRET, "text": "${HOME}"}
    assert yaml.safe_load(config.to_yaml())["training"] == {"hub_token": f"${{{NAME}}}", "text": "$${HOME}"}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trackers_and_pickles_get_no_secret(tmp_path, monkeypatch):
    from counterpoint.engine.prepare import grpo_config

    monkeypatch.setenv(NAME, SECRET)
    monkeypatch.setenv("COUNTERPOINT_PLAIN", PLAIN)
    training = {
        "hub_token": f"${{{NAME}}}",
        "vllm_server_base_url": "http://x/${COUNTERPOINT_PLAIN}",
        "generation_kwargs": {"a": ["${COUNTERPOINT_PLAIN}"]},
    }
    path = tmp_path / "c.yaml"
    path.write_text(
        yaml.safe_dump({"domains": {"math": {"source": "pocket"}}, "training": training, "run": {"device": "cpu"}})
    )
    args = grpo_config(load_config(path), str(tmp_path))
    assert args.hub_token == SECRET
    for shown in (str(args.to_sanitized_dict()), args.to_json_string(), str(args.to_dict()), str(args), repr(args)):
        assert_clean(shown, "a tracker")
    raw = pickle.dumps(args)
    assert_clean(raw, "a pickle")
    assert pickle.loads(raw).vllm_server_base_url == "http://x/${COUNTERPOINT_PLAIN}"


def test_errors_hold_no_value_of_a_variable(tmp_path, monkeypatch):
    monkeypatch.setenv(NAME, SECRET)
    data = {
        "domains": {"math": {"source": "pocket", "share": f"${{{NAME}}}", f"x${{{NAME}}}": 1}},
        "training": {"x": 1},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match="share") as told:
        load_config(tmp_path / "c.yaml", [f"run.seed=${{{NAME}}}"])
    assert_clean(str(told.value), "an error")
    assert_clean(str(CounterpointError(f"a {SECRET} b {SECRET!r}")), "an error")


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "hub_token",
        "openai_api_key",
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "apiKey",
        "key",
        "token",
        "X-API-Key",
        "aws_secret_access_key",
        "client_secret",
        "password",
        "db_password",
        "credentials",
        "credential",
        "apikey",
        "api_keys",
        "Authorization",
        "COUNTERPOINT_TEST_SECRET",
        "passwd",
    ],
)
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens",
        "keywords",
        "key_layers",
        "tokenizer",
        "eos_token",
        "pad_token",
        "answer_key",
        "tokens",
        "keys",
        "monkey",
        "turkey",
        "tokenized",
        "HOME",
        "PATH",
        "x",
        "include_num_input_tokens_seen",
        "max_completion_length",
        "keyboard",
        "secretary",
    ],
)
def test_names_of_no_secrets(name):
    assert not is_secret_name(name)


def test_command_lines_are_shown_without_secrets():
    command = [
        "train",
        "c.yaml",
        "--set",
        "training.hub_token=abc",
        "--api-key",
        "abc",
        "--token=abc",
        "-o",
        "password=abc d",
        "--set",
        "domains.a.reward={name: x, options: {api_key: abc, b: 1}}",
        "--set",
        'a.secret="abc"',
    ]
    shown = masked_command(command)
    assert len(shown) == len(command)
    assert "abc" not in " ".join(shown)
    assert shown[:4] == ["train", "c.yaml", "--set", "training.hub_token=***"]
    plain = [
        "train",
        "--set",
        "training.max_tokens=5",
        "--set",
        "training.hub_token=${HF_TOKEN}",
        "--resume",
        "runs/key",
    ]
    assert masked_command(plain) == plain


def test_an_old_configuration_is_shown_without_secrets():
    text = """training:
  hub_token: sk-a
  learning_rate: 1e-5
domains:
  math:
    reward:
    - api_key: "sk-b
        sk-c"
      max_tokens: 7
      kept: "yes"
    credentials:
      user: sk-d

      password: sk-e
    key: |
      sk-f
    api_keys:
    - sk-g
    more: {token: sk-h, left: 1, secret: 'sk-i, sk-j'}
    hub_token: ${HF_TOKEN}
"""
    shown = masked_names(text)
    assert "sk-" not in shown
    for kept in ("learning_rate: 1e-5", "max_tokens: 7", 'kept: "yes"', "left: 1", "hub_token: ${HF_TOKEN}"):
        assert kept in shown
    data = masked_data(yaml.safe_load(text))
    assert "sk-" not in str(data)
    assert data["domains"]["math"]["more"]["left"] == 1

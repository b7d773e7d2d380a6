"""The shipped recipes: each is read, checked and planned for models of the right shape, without network or GPU."""

import json
import os
import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
import yaml
from pyarrow import Table, parquet

from counterpoint.cli.app import app
from counterpoint.cli.plan import setup_of
from counterpoint.config import load_config, parse_config
from counterpoint.domains import load_domains
from counterpoint.engine.prepare import check_config
from counterpoint.models import load_tokenizer
from counterpoint.plan import GIB, Setup, make_plan, model_shapes, verdict
from counterpoint.rewards import REWARDS
from counterpoint.training import values
from scripts import load_script

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
COMMANDS = typer.main.get_command(app)
MGS, LPT = EXAMPLES / "paper-mgs", EXAMPLES / "paper-lpt"

REAL_DATA = os.environ.get("COUNTERPOINT_DATA", "")

LLAMA_8B = {
    **{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336},
    **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False},
}
QWEN_7B = {
    **{"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944},
    **{"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False},
}
QWEN3_4B = {
    **{"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "head_dim": 128},
    **{"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
}
REWARD_8B = LLAMA_8B | {"num_labels": 1, "dtype": "bfloat16"}

PAPERS = [
    pytest.param(MGS / "math-chat.yaml", QWEN_7B, 7_615_616_512, id="mgs-qwen"),
    pytest.param(MGS / "math-chat.yaml", LLAMA_8B, 8_030_261_248, id="mgs-llama"),
    pytest.param(MGS / "math-chat-instructions.yaml", QWEN_7B, 7_615_616_512, id="mgs-three-qwen"),
    pytest.param(MGS / "math-chat-instructions.yaml", LLAMA_8B, 8_030_261_248, id="mgs-three-llama"),
    pytest.param(LPT / "sequential.yaml", QWEN3_4B, 4_022_468_096, id="lpt"),
]
RECIPES = [*sorted((EXAMPLES / "recipes").glob("*.yaml")), *sorted(EXAMPLES.glob("paper-*/*.yaml"))]


def stand_in(folder, config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """What the recipes take from the environment: no data, and a reward model of which the shape alone is there."""
    monkeypatch.setenv("COUNTERPOINT_DATA", str(tmp_path))
    monkeypatch.setenv("REWARD_MODEL", stand_in(tmp_path / "reward", REWARD_8B))
    monkeypatch.setenv("JUDGE_URL", "http://localhost:1/v1")
    monkeypatch.setitem(REWARDS, "reward_model", "counterpoint.rewards.reward_model:RewardModelReward")
    monkeypatch.setattr(values, "is_vllm_available", lambda: True)


def planned(file, shape, folder, monkeypatch, gpus=8, shards=None, overrides=()):
    monkeypatch.setenv("MODEL", stand_in(folder / f"model-{gpus}", shape))
    config = load_config(file, overrides)
    setup = setup_of(config, Setup(gpus, shards=shards))
    return make_plan(model_shapes(config.model), setup, ("fsdp2",))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
@pytest.mark.filterwarnings("ignore:entropy_coef:UserWarning", "ignore::FutureWarning")
def test_recipes_are_read_and_checked(file):
    config = load_config(file)
    assert check_config(config) == []
    for domain in config.domains.values():
        assert domain.reward


@pytest.mark.parametrize(("file", "shape", "parameters"), PAPERS)
def test_recipes_of_papers_fit_one_machine_and_several(file, shape, parameters, tmp_path, monkeypatch):
    plan = planned(file, shape, tmp_path, monkeypatch)
    assert plan.model.num_trained == parameters
    assert "fits into 80.0 GiB" in verdict(plan, plan.ranks[0], 80 * GIB)
    assert plan.ranks[0].device < 70 * GIB  # room for activations
    several = planned(file, shape, tmp_path, monkeypatch, 16, 8, ["training.gradient_accumulation_steps=16"])
    assert "fits into 80.0 GiB" in verdict(several, several.ranks[0], 80 * GIB)


@pytest.mark.parametrize(("file", "shape", "parameters"), PAPERS)
def test_the_readme_has_the_numbers_of_the_plan(file, shape, parameters, tmp_path, monkeypatch):
    rank = planned(file, shape, tmp_path, monkeypatch).ranks[0]
    parts = (rank.training - rank.reference - rank.reward_models, rank.surgery, rank.reference)
    cells = [f"{part / GIB:.1f}" for part in (*parts, rank.reference_gathered, rank.reward_models, rank.vllm)]
    lines = (file.parent / "README.md").read_text().splitlines()
    assert any(line.endswith(f"| {' | '.join(cells)} | **{rank.device / GIB:.1f}** |") for line in lines), cells


def test_the_values_of_the_paper(tmp_path):
    two, three = (load_config(MGS / name) for name in ("math-chat.yaml", "math-chat-instructions.yaml"))
    for config in (two, three):
        found = config.training
        completions = 8 * found["per_device_train_batch_size"] * found["gradient_accumulation_steps"]
        assert completions == 64 * found["num_generations"] == 512
        assert (found["temperature"], found["top_p"], found["learning_rate"], found["beta"]) == (0.7, 1.0, 1e-6, 0.001)
        assert (config.max_prompt_tokens, found["max_completion_length"]) == (896, 4096)
        assert found["vllm_max_model_length"] == 896 + 4096
    steps = {"max_steps": three.training["max_steps"]}
    assert two.training | steps == three.training
    assert two.domains == {name: three.domains[name] for name in two.domains}
    lpt = load_config(LPT / "sequential.yaml")
    assert lpt.strategy.order == ["code", "math", "qa", "writing"]
    assert lpt.strategy.steps * 64 == 5120
    assert lpt.domains["writing"].reward[0].options.get("scale", (0.0, 0.5, 1.0)) == (0.0, 0.5, 1.0)


def test_domains_to_paste_are_read():
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "recipes.md").read_text(), re.DOTALL | re.MULTILINE)
    pasted = [name for block in blocks for name in parse_config({"model": "pocket"} | yaml.safe_load(block)).domains]
    assert pasted == ["chat", "writing"]


# The pages beside them


def shown_commands():
    for page in (MGS / "README.md", LPT / "README.md"):
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "counterpoint" in words:
                    words = words[words.index("counterpoint") + 1 :]
                    yield pytest.param(words, id=f"{page.parent.name}: {' '.join(words[:2])}")


@pytest.mark.parametrize("words", [*shown_commands()])
def test_shown_commands_exist_and_their_settings_are_read(words):
    name, *rest = words
    command = COMMANDS.commands[name]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("-")} <= known
    overrides = [value for key, value in pairwise(rest) if key == "--set"]
    if rest[0].endswith(".yaml"):
        assert load_config(ROOT / rest[0], overrides).domains


# Rows


def test_rows_of_mgs_become_prompts(tmp_path, monkeypatch):
    folder = tmp_path / "simplelr_qwen_level3to5"
    folder.mkdir()
    sums = [{"extra_info": {"question": f"What is {n} + 1?", "answer": str(n + 1) if n else None}} for n in range(9)]
    chats = [{"prompt": [{"role": "user", "content": f"Tell me of {n}."}]} for n in range(9)]
    tests = (
        (sums, folder / "train", folder / "test"),
        (chats, *(tmp_path / f"wildchat-if_{x}" for x in ("train", "val"))),
    )
    for rows, train, held_out in tests:
        parquet.write_table(Table.from_pylist(rows[:6]), f"{train}.parquet")
        parquet.write_table(Table.from_pylist(rows[6:]), f"{held_out}.parquet")
    row = {"instruction_id_list": ["punctuation:no_comma"], "instruction_kwargs": [{"num_words": None}]}
    lines = [{"input": [{"role": "user", "content": f"Rain {n}."}], "args": row} for n in range(9)]
    (tmp_path / "if.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = f"domains.instructions.source={tmp_path / 'if.jsonl'}"
    overrides = [
        source,
        "model=pocket",
        "evaluation.prompts=3",
        "max_prompt_tokens=5000",
        "domains.chat.reward=repetition",
    ]
    config = load_config(MGS / "math-chat-instructions.yaml", overrides)
    math, chat, instructions = load_domains(config, load_tokenizer(config.model))
    assert [len(d.train) for d in (math, chat, instructions)] == [5, 6, 6]
    assert [len(d.evaluation) for d in (math, chat, instructions)] == [3, 3, 3]
    for domain, text in ((math, "What is 1 + 1?\nPut the final answer in \\boxed{}."), (chat, "Tell me of 0.")):
        assert domain.train[0]["prompt"].endswith(f"\n\nUser: <query>{text}</query>\nAssistant:")
    assert math.train[0]["answer"] == "2"


@pytest.mark.skipif("COUNTERPOINT_DATA" not in os.environ, reason="needs the files of WildChat-IF")
def test_the_chat_recipe_on_the_real_files(monkeypatch):
    monkeypatch.setenv("COUNTERPOINT_DATA", REAL_DATA)
    chat = {"reward": "repetition", "limit": 300, "chat": "false", "prompt": "'{prompt[0].content}'"}
    overrides = [f"domains.chat.{key}={value}" for key, value in (chat | {"max_prompt_tokens": 9000}).items()]
    config = load_config(EXAMPLES / "recipes" / "chat.yaml", ["model=pocket", "evaluation.prompts=100", *overrides])
    (chat,) = load_domains(config, load_tokenizer(config.model))
    assert chat.summary.rows_read == 300
    assert len(chat.evaluation) == 100


# The script that gets the data of LPT


@pytest.fixture(scope="module")
def fetch():
    return load_script(LPT / "fetch.py")


def test_rows_of_lpt(fetch):
    assert fetch.math({"problem": "1 + 1?", "answer": "2", "question_type": "MCQ"}) == {
        "prompt": "1 + 1?",
        "answer": "2",
    }
    assert fetch.math({"problem": "Show it.", "answer": "", "question_type": "proof"}) is None
    question = {
        "question": "Which?",
        "options": ["x", "y"],
        "answer_letter": "B",
        "subfield": "s",
        "difficulty": "hard",
    }
    assert fetch.qa(question)["prompt"].startswith("Which?\n\nA. x\nB. y\n")
    tests = '{"inputs": ["1\\n"], "outputs": ["2\\n"]}'
    program = {"prompt": [{"role": "user", "content": "Double it."}], "reward_model": {"ground_truth": tests}}
    assert fetch.code(program) == {"prompt": program["prompt"], "tests": tests}
    assert fetch.code({"prompt": "p", "reward_model": {"ground_truth": "x" * 300_000}}) is None
    assert fetch.writing({"prompt": "A sea.", "response": "<think>hm</think> Waves."})["answer"] == "Waves."
    with pytest.raises(KeyError, match="text"):
        fetch.writing({"text": "A sea."})


def test_strata_keep_their_share(fetch):
    rows = [{"n": n, "stratum": n % 4 > 0} for n in range(400)]
    drawn = fetch.draw(rows, 40, lambda row: row["stratum"])
    assert drawn == fetch.draw(rows, 40, lambda row: row["stratum"])
    assert len({row["n"] for row in drawn}) == 40
    assert sum(row["stratum"] for row in drawn) == 30
    with pytest.raises(ValueError, match="there are 400"):
        fetch.draw(rows, 401)


def test_the_files_of_lpt_are_the_rows_of_its_recipe(fetch, tmp_path, monkeypatch):
    hub = {
        "open-r1/OpenR1-Math-220k": [{"problem": f"{n} + 1?", "answer": str(n + 1)} for n in range(20)],
        "math-ai/aime25": [{"problem": f"{n} + 2?", "answer": str(n + 2)} for n in range(3)],
        "Kwai-Klear/KlearReasoner-CodeSub-15K": [
            {"prompt": [{"role": "user", "content": f"Add {n}."}], "reward_model": {"ground_truth": "[]"}}
            for n in range(20)
        ],
        "m-a-p/SuperGPQA": [
            {"question": f"{n}?", "options": ["x", "y"], "answer_letter": "A", "subfield": "s", "difficulty": "easy"}
            for n in range(20)
        ],
    } | {name: [{"prompt": f"{name} {n}", "response": "Once."} for n in range(6)] for name in fetch.WRITING}
    monkeypatch.setattr(fetch, "load", lambda name, split="train": iter(hub[name]))
    monkeypatch.setattr(fetch, "TRAIN", 12)
    monkeypatch.setattr(fetch, "VALIDATION", 3)
    fetch.fetch(tmp_path)
    overrides = ["model=pocket", "evaluation.prompts=3", "domains.math.evaluation.size=3", "max_prompt_tokens=5000"]
    overrides += [f"domains.{name}.reward=repetition" for name in ("code", "writing")]
    overrides += ["domains.code.prompt='{prompt[0].content}'"]
    config = load_config(LPT / "sequential.yaml", overrides)
    domains = load_domains(config, load_tokenizer(config.model))
    assert {(domain.name, len(domain.train), len(domain.evaluation)) for domain in domains} == {
        (name, 12, 3) for name in ("math", "code", "qa", "writing")
    }
    assert domains[0].train[0]["prompt"].endswith("Put the final answer in \\boxed{}.")


# The batch files, with a cluster of one echo


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("folder", [MGS, LPT], ids=lambda folder: folder.name)
def test_batch_files_start_what_they_say(folder, nodes, tmp_path, monkeypatch):
    commands = {
        "scontrol": "echo head",
        "srun": 'SLURM_NODEID=0 "$@"',
        "accelerate": 'printf "%s\\n" "$@" > accelerate.txt',
        "grep": "exit 1",
    }
    (tmp_path / "bin").mkdir()
    for name, script in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_NNODES": str(nodes)}
    environment |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7", "MODEL": "pocket"}
    script = ["bash", str(folder / "train.sbatch")]
    done = subprocess.run(script, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "accelerate.txt").read_text().split("\n")[:-1]
    launcher = SimpleNamespace(**dict(zip([w.lstrip("-") for w in words[1:-1:2]], words[2::2], strict=False)))
    assert (ROOT / launcher.config_file).exists()
    assert (launcher.num_machines, launcher.num_processes) == (str(nodes), str(8 * nodes))
    assert ("hsdp" in launcher.config_file) == (nodes > 1)
    start = words.index("counterpoint")
    assert words[start + 1] == "train"
    config = load_config(ROOT / words[start + 2], words[start + 4 :: 2])
    training = config.training
    assert nodes * 8 * training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] == 512


def test_the_fetch_script_is_shell():
    checked = subprocess.run(["bash", "-n", str(MGS / "fetch.sh")], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr

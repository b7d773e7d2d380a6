"""The judge on a real server: ``transformers serve`` on loopback with a tiny model that learned two judgements."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from counterpoint.pocket.tokenizer import new_tokenizer
from counterpoint.rewards import FAILED, build_reward

TEMPLATE = (
    "{% for m in messages %}{{ m.content }}\n{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}{% endif %}"
)
QUESTION = {"prompt": "Write a line about rain."}
LEARNED = {"Rain taps the roof.": '{"score": 1}', "No.": '{"score": 0}', "Perhaps.": "I would say about one half."}


def save_judge(folder: Path) -> None:
    """A Llama of two layers that reads characters, and answers the three requests by heart."""
    tokenizer = new_tokenizer(longest=4096)
    tokenizer.chat_template = TEMPLATE
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=4096, eos_token_id=end, pad_token_id=end, **sizes
        )
    )
    reward = build_reward("judge", model="m", structured=False)
    examples = []
    for text, reply in LEARNED.items():
        messages = reward.request(text, reward.prepare(QUESTION))["messages"]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        before = tokenizer(prompt)["input_ids"]
        after = [*tokenizer(reply)["input_ids"], end]
        examples.append((torch.tensor([before + after]), torch.tensor([[-100] * len(before) + after])))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = sum(model(input_ids=ids, labels=labels).loss for ids, labels in examples)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss.detach()) < 0.02:
            break
    assert float(loss.detach()) < 0.1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def endpoint(tmp_path):
    """Base URL of the server, and the model's name there."""
    save_judge(tmp_path / "judge")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", tmp_path / "judge"]
    command += ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        for _ in range(240):
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", str(tmp_path / "judge"), process
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_a_served_model_judges_and_its_prose_is_no_score(endpoint, tmp_path):
    url, name, process = endpoint
    options = {"model": name, "base_url": url, "structured": False, "cache": str(tmp_path / "cache"), "max_tokens": 32}
    reward = build_reward("judge", **options)
    texts = list(LEARNED)
    scores = reward(prompts=[QUESTION["prompt"]] * 3, completions=texts)
    assert scores[:2] == [1.0, 0.0]
    assert scores[2] is FAILED
    assert (reward.usage.calls, reward.usage.failed) == (3, 1)
    assert reward.usage.prompt_tokens > 3 * 500
    assert reward.usage.completion_tokens >= 2 * len('{"score": 1}')

    process.terminate()
    process.wait(30)
    again = build_reward("judge", **options, retries=0, timeout=5)
    assert again(prompts=[QUESTION["prompt"]] * 3, completions=texts) == [
        1.0,
        0.0,
        FAILED,
    ]  # from the cache, without a server
    assert (again.usage.cached, again.usage.failed) == (2, 1)

"""Tiny models of today's families: two steps of the default strategy, the same after a resume, and their edits read."""

import re
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from counterpoint.diagnosis import edits
from counterpoint.surgery import Surgeon
from counterpoint.training import DomainGRPOTrainer
from families import build, groups_of, vision_language
from trainer_helpers import DATA, REWARDS, grpo_args

pytestmark = pytest.mark.filterwarnings("ignore")  # libraries' own, of some families

TRAINED = [
    *("qwen3_5_text", "qwen3_next", "gemma4_text", "glm4_moe", "gpt_oss", "deepseek_v3", "nemotron_h", "falcon_h1"),
    *("lfm2", "qwen2_5_vl"),
]
LANGUAGE = {f"layers.{layer}.{block}" for layer in range(2) for block in ("attention", "mlp")} | {"embedding", "norm"}


def whole_experts(group):
    return re.sub(r"\.experts\.\d+$", ".experts", group)


def tiny(kind):
    return vision_language() if kind == "qwen2_5_vl" else build(kind)


@pytest.mark.parametrize("kind", TRAINED)
def test_two_steps_a_resume_and_the_edits(kind, tiny_tokenizer, tmp_path):
    tiny(kind).save_pretrained(tmp_path / "base")
    auto = AutoModelForImageTextToText if kind == "qwen2_5_vl" else AutoModelForCausalLM

    def trainer(folder):
        model = auto.from_pretrained(tmp_path / "base", dtype=torch.float32)
        settings = {"max_steps": 2, "save_steps": 1, "save_strategy": "steps", "gradient_accumulation_steps": 2}
        args = grpo_args(folder, max_completion_length=6, **settings)
        return DomainGRPOTrainer(model, REWARDS, args, DATA, processing_class=tiny_tokenizer)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = trainer(tmp_path / "out")
        whole.train()
        resumed = trainer(tmp_path / "out")
        resumed.train(resume_from_checkpoint=tmp_path / "out" / "checkpoint-1")
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    groups = set(whole.last_record.groups)
    assert groups >= (LANGUAGE if kind == "qwen2_5_vl" else groups_of(kind))
    assert whole.last_record.finite
    found = edits(tmp_path / "base", [tmp_path / "out" / "checkpoint-2"])
    modules = {whole_experts(part.name) for part in found.checkpoints[0].modules}
    assert modules >= {whole_experts(group) for group in groups}
    assert not found.checkpoints[0].equal


@pytest.mark.parametrize("kind", ["llama4_text", "granitemoehybrid"])
def test_the_surgeon_takes_what_trl_cannot_train(kind):
    model = build(kind)
    surgeon = Surgeon(model, "mgs")
    for domain in ("code", "math"):
        ids = torch.randint(3, 100, (2, 8), generator=torch.Generator().manual_seed(len(domain) * 7))
        model(input_ids=ids, labels=ids).loss.backward()
        surgeon.collect(domain)
    record = surgeon.combine()
    assert set(record.groups) == groups_of(kind)
    assert record.finite

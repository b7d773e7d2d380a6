"""What else a GPU holds: the reference model of a KL term, vLLM's share, reward models."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import typer
from trl import GRPOConfig
from typer.testing import CliRunner

from counterpoint.cli.plan import plan as plan_command
from counterpoint.companions import VLLM_SHARE, Companions, companions_of
from counterpoint.config import LoraConfig, ModelConfig, parse_config
from counterpoint.config.domain import RewardConfig
from counterpoint.errors import ConfigError, ModelError
from counterpoint.models import load_model, load_tokenizer
from counterpoint.plan import GIB, Setup, make_plan, model_shapes, verdict
from counterpoint.training import DomainGRPOTrainer
from trainer_helpers import DATA, REWARDS, grpo_args

CLASSIFIER = {
    **{"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "num_labels": 1, "dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def llama():
    return model_shapes("8B")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "config.json").write_text(json.dumps(CLASSIFIER))
    return str(folder)


def configured(training=None, *rewards):
    config = parse_config({"model": "pocket", "domains": {"math": {"source": "pocket"}}, "training": training or {}})
    domain = config.domains["math"].model_copy(
        update={"reward": tuple(RewardConfig(name="reward_model", options=options) for options in rewards)}
    )
    return config.model_copy(update={"domains": {"math": domain}})


def ranks(shapes, companions, backends=("ddp", "fsdp2"), **settings):
    return make_plan(shapes, Setup(gpus=8, companions=companions, **settings), backends).ranks


def test_a_kl_term_keeps_one_more_copy_of_the_weights(llama):
    assert not companions_of(configured(), 8).kl
    assert companions_of(configured({"beta": 0.001}), 8).kl
    plain, kl = ranks(llama, Companions()), ranks(llama, Companions(kl=True))
    for without, beside, shards in zip(plain, kl, (1, 8), strict=True):
        assert without.reference == 0
        assert beside.reference == 4 * llama.num_trained // shards
        assert beside.training == without.training + beside.reference
    half = ranks(llama, Companions(kl=True), dtype="bfloat16")
    assert [rank.reference for rank in half] == [2 * llama.num_trained, 2 * llama.num_trained // 8]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trl_keeps_the_bytes_that_are_planned(dtype, tmp_path):
    model = load_model(ModelConfig(dtype=dtype))
    trainer = DomainGRPOTrainer(
        model, REWARDS, grpo_args(tmp_path, beta=0.1), DATA, processing_class=load_tokenizer(ModelConfig())
    )
    held = sum(param.numel() * param.itemsize for param in trainer.ref_model.parameters())
    plan = make_plan(model_shapes("pocket"), Setup(companions=Companions(kl=True), dtype=dtype), ("one process",))
    assert plan.ranks[0].reference == held


def test_fsdp2_gathers_the_reference_before_there_is_a_gradient(llama):
    ddp, fsdp2 = ranks(llama, Companions(kl=True), sync_each_batch=True)
    assert (ddp.reference_gathered, fsdp2.reference_gathered) == (0, 2 * llama.num_trained)
    scoring = fsdp2.weights + fsdp2.moments + fsdp2.reference + fsdp2.reference_gathered
    assert scoring > fsdp2.training + fsdp2.surgery
    assert fsdp2.device == scoring


def test_adapters_need_no_reference():
    pytest.importorskip("peft", reason="the extra peft is not installed")
    shapes = model_shapes(ModelConfig(path="pocket", lora=LoraConfig(r=4, target_modules="all-linear")))
    assert [rank.reference for rank in ranks(shapes, Companions(kl=True))] == [0, 0]


def test_vllm_has_its_share_of_each_gpu(llama):
    colocated = Companions(vllm="colocate", vllm_share=0.3)
    (plain,), (rank,) = ranks(llama, Companions(), ("fsdp2",)), ranks(llama, colocated, ("fsdp2",))
    assert rank.vllm == int(0.3 * 80 * GIB)
    assert rank.device == plain.device + rank.vllm
    assert rank.training == plain.training
    (server,) = ranks(llama, Companions(vllm="server"), ("fsdp2",))
    assert server.device == plain.device


def test_vllm_that_sleeps_is_awake_before_there_is_a_gradient(llama):
    asleep = Companions(vllm="colocate", vllm_share=0.3, vllm_sleeps=True)
    (rank,) = ranks(llama, asleep, ("fsdp2",))
    assert rank.device == max(rank.training + rank.surgery, rank.weights + rank.moments + rank.vllm)
    (large,) = ranks(llama, replace(asleep, vllm_share=0.8), ("fsdp2",))
    assert large.device == large.weights + large.moments + large.vllm


def test_sleep_is_proposed_where_nothing_cheaper_fits(llama):
    plan = make_plan(llama, Setup(8, companions=Companions(vllm="colocate", vllm_share=0.6)), ("fsdp2",))
    assert "vllm_enable_sleep_mode" not in verdict(plan, plan.ranks[0], 80 * GIB)
    plan = make_plan(llama, Setup(8, companions=Companions(vllm="colocate", vllm_share=0.85)), ("fsdp2",))
    assert "vllm_enable_sleep_mode: true would fit" in verdict(plan, plan.ranks[0], 80 * GIB)
    plan = make_plan(llama, Setup(8, companions=Companions(vllm="colocate", vllm_share=0.95)), ("fsdp2",))
    assert "Lower vllm_gpu_memory_utilization" in verdict(plan, plan.ranks[0], 80 * GIB)


def test_defaults_are_those_of_trl():
    defaults = {field.name: field.default for field in fields(GRPOConfig)}
    assert defaults["vllm_gpu_memory_utilization"] == VLLM_SHARE
    assert (defaults["vllm_mode"], defaults["beta"], defaults["vllm_enable_sleep_mode"]) == ("colocate", 0.0, False)
    found = companions_of(configured({"use_vllm": True}), 8)
    assert (found.vllm, found.vllm_share, found.vllm_sleeps) == ("colocate", VLLM_SHARE, False)
    assert companions_of(configured({"use_vllm": True, "vllm_mode": "server"}), 8).vllm_share == 0.0
    assert companions_of(configured({"vllm_enable_sleep_mode": True}), 8) == Companions()


@pytest.mark.parametrize(
    ("device", "place", "copies", "held"),
    [
        (None, "every GPU", 1, 1),
        ("cuda", "every GPU", 1, 1),
        ("cuda:7", "one of the GPUs", 8, 8),
        (["cuda:6", "cuda:7"], "one of the GPUs", 4, 4),
        ("cuda:8", "other GPUs", 8, 0),
        ("cpu", "the host", 8, 0),
    ],
)
def test_a_reward_model_is_where_its_device_is(classifier, device, place, copies, held):
    companions = companions_of(configured({}, {"model": classifier} | ({"device": device} if device else {})), 16)
    (model,) = companions.reward_models
    assert (model.place, model.copies) == (place, copies)
    layer = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 32 + 2 * 16
    assert model.parameters == 64 * 16 + 2 * layer + 16 + 16
    assert model.num_bytes == 2 * model.parameters  # as it is saved
    assert companions.reward_bytes == held * model.num_bytes
    rank = ranks(model_shapes("pocket"), companions, ("fsdp2",))[0]
    assert rank.reward_models == companions.reward_bytes


def test_rewards_of_a_process_share_a_classifier(classifier):
    once = companions_of(configured({}, {"model": classifier}, {"model": classifier, "normalize": True}), 8)
    assert len(once.reward_models) == 1
    twice = companions_of(configured({}, {"model": classifier}, {"model": classifier, "dtype": "float32"}), 8)
    assert [model.num_bytes // model.parameters for model in twice.reward_models] == [2, 4]


def test_what_is_no_reward_model_or_no_number(tmp_path, classifier):
    with pytest.raises(ModelError, match="is no sequence classifier"):
        companions_of(configured({}, {"model": str(tmp_path)}), 8)
    with pytest.raises(ConfigError, match="no device of torch"):
        companions_of(configured({}, {"model": classifier, "device": "gpu"}), 8)
    with pytest.raises(ConfigError, match=r"training\.beta: expected a number"):
        companions_of(configured({"beta": "much"}), 8)


def test_the_command_says_each_part(tmp_path):
    app = typer.Typer()
    app.command()(plan_command)
    config, file = tmp_path / "my.yaml", tmp_path / "plan.json"
    config.write_text(
        "model: pocket\ndomains:\n  math: {source: pocket}\n  code: {source: pocket}\n"
        "training: {beta: 0.01, use_vllm: true, vllm_enable_sleep_mode: true}\n"
    )
    arguments = [str(config), "-n", "2", "--gpu-memory", "10", "--json", str(file)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.exception
    for text in ("reference model", "3.0 GiB of each GPU (30%), while it generates", "at the fullest moment"):
        assert text in result.stdout
    found = json.loads(Path(file).read_text())
    assert found["companions"]["kl"]
    assert found["backends"][0]["vllm"] == 3 * GIB

"""Back ends and batches that cannot be exact are refused before training, each with what to use instead."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import StateDictType

from counterpoint.anatomy import parameters_of
from counterpoint.config import parse_config
from counterpoint.engine import check_config
from counterpoint.errors import DomainError, StrategyError, UnsupportedError
from counterpoint.surgery import resolve_strategy
from counterpoint.training import DomainGRPOTrainer
from counterpoint.training.backends import check_accelerator, check_checkpoints, check_devices, separable
from trainer_helpers import DATA, REWARDS, grpo_args

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def accelerator(kind, *, fsdp2=False, tp=False, state_dict=StateDictType.FULL_STATE_DICT):
    return SimpleNamespace(
        distributed_type=kind,
        is_fsdp2=fsdp2,
        parallelism_config=SimpleNamespace(tp_enabled=tp),
        state=SimpleNamespace(fsdp_plugin=SimpleNamespace(state_dict_type=state_dict)),
    )


@pytest.mark.parametrize(
    ("back_end", "message"),
    [
        (accelerator(DistributedType.DEEPSPEED), "DeepSpeed keeps .* steps the optimizer inside backward.*Use FSDP2"),
        (accelerator(DistributedType.FSDP), "FSDP1 .* keeps flat parameters.*Use FSDP2"),
        (accelerator(DistributedType.MEGATRON_LM), "MEGATRON_LM: domain gradients were never shown.*Use DDP or FSDP2"),
        (accelerator(DistributedType.XLA), "XLA: domain gradients were never shown"),
        (accelerator(DistributedType.MULTI_GPU, tp=True), "Tensor parallelism: TRL gives every rank.*Use FSDP2"),
    ],
)
def test_back_ends_that_cannot_be_exact_are_refused_with_what_to_use(back_end, message):
    with pytest.raises(UnsupportedError, match=message):
        check_accelerator(back_end, surgery=True)
    check_accelerator(back_end, surgery=False)


@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU])
def test_one_process_and_ddp_are_exact(kind):
    check_accelerator(accelerator(kind), surgery=True)
    assert separable(accelerator(kind))


def test_fsdp2_is_exact():
    check_accelerator(accelerator(DistributedType.FSDP, fsdp2=True), surgery=True)


def test_checkpoints_in_shards_are_refused_for_whole_runs():
    shards = accelerator(DistributedType.FSDP, fsdp2=True, state_dict=StateDictType.SHARDED_STATE_DICT)
    with pytest.raises(UnsupportedError, match="Use fsdp_state_dict_type: FULL_STATE_DICT"):
        check_checkpoints(shards)
    check_checkpoints(accelerator(DistributedType.FSDP, fsdp2=True))
    check_checkpoints(accelerator(DistributedType.NO))


def test_one_process_with_several_gpus_is_refused():
    with pytest.raises(UnsupportedError, match=r"One process sees 4 GPUs.*accelerate launch --num_processes 4"):
        check_devices(SimpleNamespace(n_gpu=4))
    check_devices(SimpleNamespace(n_gpu=1))


def build(model, tokenizer, folder, strategy, **settings):
    return DomainGRPOTrainer(
        str(model), REWARDS, grpo_args(folder, strategy=strategy, **settings), DATA, processing_class=tokenizer
    )


def test_halves_need_two_micro_batches_of_each_domain(tiny_model, tiny_tokenizer, tmp_path):
    with pytest.raises(DomainError, match=r"needs at least 2 micro-batches in every step, and 'math' has 1. Double"):
        build(tiny_model, tiny_tokenizer, tmp_path, "mgs-significant", gradient_accumulation_steps=2)
    assert build(tiny_model, tiny_tokenizer, tmp_path, "mgs-significant")._halves


def test_halves_are_checked_in_a_configuration_too():
    config = {
        "strategy": "mgs-significant",
        "domains": {"math": {"source": "pocket"}, "code": {"source": "pocket"}},
        "training": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4},
        "run": {"device": "cpu"},
    }
    (problem,) = check_config(parse_config(config))
    assert "each domain needs at least 2 micro-batches" in problem


def test_a_protected_domain_must_exist(tiny_model, tiny_tokenizer, tmp_path):
    strategy = {"grouping": "module", "weighting": {"type": "pcgrad", "protect": ["maths"]}}
    assert resolve_strategy(strategy)
    with pytest.raises(DomainError, match=r"protect\.0 unknown domain 'maths': did you mean 'math'"):
        build(tiny_model, tiny_tokenizer, tmp_path, strategy)


def test_a_weighted_domain_must_exist(tiny_model, tiny_tokenizer, tmp_path):
    strategy = {"grouping": "global", "weighting": {"type": "static", "weights": {"maths": 2.0}}}
    with pytest.raises(DomainError, match=r"weights\.maths unknown domain 'maths': did you mean 'math'"):
        build(tiny_model, tiny_tokenizer, tmp_path, strategy)


def test_the_surgeon_is_there_from_the_start_in_one_process(tiny_model, tiny_tokenizer, tmp_path):
    trainer = build(tiny_model, tiny_tokenizer, tmp_path, "mgs")
    assert trainer.surgeon.groups[0] == "embedding"
    trainer._surgeon, trainer.accelerator.state.__dict__["num_processes"] = None, 2
    try:
        with pytest.raises(StrategyError, match="The Surgeon is made when training starts"):
            _ = trainer.surgeon
    finally:
        trainer.accelerator.state.__dict__["num_processes"] = 1


def test_buffers_are_the_surgeons(tiny_model, tiny_tokenizer, tmp_path):
    with pytest.raises(StrategyError, match="disk"):
        grpo_args(tmp_path, buffers="disk")


def test_wrappers_leave_no_trace_in_names():
    model = nn.Sequential(nn.Linear(2, 2))
    compiled = torch.compile(model)
    assert list(parameters_of(compiled)) == list(dict(model.named_parameters()))

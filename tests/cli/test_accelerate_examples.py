"""The configurations for ``accelerate launch``, as the installed accelerate reads them."""

import argparse
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, PrecisionType, patch_environment
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import CPUOffloadPolicy

FOLDER = Path(__file__).parents[2] / "examples" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
FSDP = [path for path in FILES if not path.name.startswith("ddp")]
SECTIONS = ("fsdp_config", "parallelism_config")

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
each_fsdp_file = pytest.mark.parametrize("path", FSDP, ids=lambda path: path.name)


def launched(path: Path) -> tuple[argparse.Namespace, dict[str, str]]:
    """What ``accelerate launch`` makes of the file: its arguments, and the environment of a process."""
    where = ["--machine_rank", "1"] if "multinode" in path.name else ["--main_process_port", "0"]
    args = launch_command_parser().parse_args(["--config_file", str(path), *where, "-m", "counterpoint", "train", "x"])
    args, _, _ = _validate_launch_command(args)
    return args, prepare_multi_gpu_env(args)


def unknown_keys(path: Path) -> set[str]:
    """Keys of nested sections that ``accelerate launch`` has no option for: it would drop them in silence."""
    known = {action.dest for action in launch_command_parser()._actions}
    data = yaml.safe_load(path.read_text())
    return {key for section in SECTIONS for key in data.get(section, {})} - known


def test_every_recipe_is_there():
    assert {path.name for path in FILES} == {
        *("ddp-1node.yaml", "ddp-multinode.yaml"),
        *("fsdp2-1node.yaml", "fsdp2-multinode.yaml", "hsdp-multinode.yaml"),
    }


@each_file
def test_accelerate_knows_every_key(path):
    assert load_config_from_file(str(path)).num_processes > 1
    assert not unknown_keys(path)


def test_a_misspelt_key_is_seen(tmp_path):
    path = tmp_path / "x.yaml"
    text = (FOLDER / "fsdp2-1node.yaml").read_text()
    path.write_text(text.replace("fsdp_reshard_after_forward", "fsdp_reshard_forward"))
    assert unknown_keys(path) == {"fsdp_reshard_forward"}
    path.write_text(text + "\nnumber_of_machines: 1\n")
    with pytest.raises(ValueError, match="number_of_machines"):
        load_config_from_file(str(path))


@each_file
def test_back_end_precision_and_processes(path):
    config = load_config_from_file(str(path))
    expected = DistributedType.FSDP if path in FSDP else DistributedType.MULTI_GPU
    assert config.distributed_type == expected
    assert config.mixed_precision == str(PrecisionType.BF16)
    assert not config.use_cpu
    assert not config.downcast_bf16
    assert not config.deepspeed_config
    assert not config.dynamo_config
    args, env = launched(path)
    machines = 2 if "multinode" in path.name else 1
    assert (args.num_machines, args.num_processes) == (machines, 8 * machines)
    assert args.nproc_per_node == "8"
    assert env["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert args.module


@pytest.mark.parametrize("path", [path for path in FILES if "multinode" in path.name], ids=lambda path: path.name)
def test_machines_find_each_other(path):
    args, _ = launched(path)
    assert (args.nnodes, args.node_rank) == ("2", 1)
    assert args.rdzv_backend == "static"
    assert args.rdzv_endpoint == "10.0.0.1:29500"


@each_fsdp_file
def test_fsdp_is_version_2_and_wraps_layers(path):
    _, env = launched(path)
    assert env["ACCELERATE_USE_FSDP"] == "true"
    with patch_environment(**{key: value for key, value in env.items() if key.startswith("FSDP_")}):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.reshard_after_forward is True
    assert not isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    # evaluations and reference models read the weights of every rank before accelerate spreads them
    assert plugin.cpu_ram_efficient_loading is False
    # TRL's gradient_checkpointing does it; transformers refuses both
    assert plugin.activation_checkpointing is False


def test_hsdp_shards_inside_a_machine():
    _, env = launched(FOLDER / "hsdp-multinode.yaml")
    assert env["ACCELERATE_USE_PARALLELISM_CONFIG"] == "true"
    with patch_environment(**{key: value for key, value in env.items() if key.startswith("PARALLELISM_CONFIG_")}):
        config = ParallelismConfig()
    assert config._get_mesh() == (("dp_replicate", "dp_shard"), (2, 8))
    assert config.fsdp_dim_names == ["dp_replicate", "dp_shard_cp"]
    assert config.total_size == 16


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "hsdp-multinode.yaml"], ids=lambda p: p.name)
def test_others_need_no_mesh(path):
    _, env = launched(path)
    assert "ACCELERATE_USE_PARALLELISM_CONFIG" not in env


@each_file
def test_the_command_at_the_top_names_the_file(path):
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"examples/accelerate/{path.name}" in line for line in comment)

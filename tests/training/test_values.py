"""Values under ``training``: what TRL would fail on, or pass over in silence, is refused before a model is loaded."""

import dataclasses
import inspect
import sys
import warnings

import pytest
import yaml
from trl import GRPOConfig, GRPOTrainer

import counterpoint.training.values as values
from counterpoint.config import load_config, parse_config
from counterpoint.engine import check_config
from counterpoint.engine.prepare import grpo_config
from counterpoint.errors import ConfigError
from counterpoint.training.values import CHOICES, setting_findings, setting_names
from hostile import survey, value

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

BATCH = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "num_generations": 4,
}


def config(**training):
    domains = {"math": {"source": "pocket"}, "code": {"source": "pocket"}}
    return {"domains": domains, "training": BATCH | training, "run": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("learning_rate", "fast"),
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("temperature", 0),
        ("top_p", 7),
        ("loss_type", "nope"),
        ("max_completion_length", -5),
        ("max_steps", 2.5),
        ("max_steps", "10"),
        ("max_steps", True),
        ("scale_rewards", "zzz"),
        ("num_generations", 0),
        ("gradient_accumulation_steps", "4"),
        ("log_completions", "maybe"),
        ("importance_sampling_level", "zzz"),
        ("adam_beta1", 1.0),
        ("log_level", "loud"),
        ("parallelism_config", {"cp_size": 2}),
        # what only building shows
        ("report_to", "nowhere"),
        ("accelerator_config", "x"),
        ("accelerator_config", {"x": 1}),
        ("optim", "adamx"),
        ("optim_args", "x"),
        ("lr_scheduler_type", "zigzag"),
        ("lr_scheduler_kwargs", {"x": 1}),
        ("lr_scheduler_kwargs", "x"),
        ("generation_kwargs", {"x": 1}),
        ("generation_kwargs", {"stop_strings": ["a"]}),
        ("optim", "lomo"),
        ("optim", "galore_adamw_layerwise"),
        ("cache_implementation", "x"),
        ("gradient_checkpointing_kwargs", {"x": 1}),
        ("sync_ref_model", True),
        ("torch_compile_backend", "static"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(key, wrong):
    problems = check_config(parse_config(config(**{key: wrong})))
    assert len(problems) >= 1
    assert problems[0].startswith(f"training.{key}: ")


@pytest.mark.parametrize(
    ("key", "training"),
    [
        ("use_vllm", {"use_vllm": True}),
        ("use_liger_kernel", {"use_liger_kernel": True}),
        ("optim", {"optim": "adamw_8bit"}),
        ("optim", {"optim": "galore_adamw", "optim_target_modules": ["attn"]}),
        ("optim", {"optim": "apollo_adamw", "optim_target_modules": "all-linear"}),
        ("report_to", {"report_to": "wandb"}),
        ("report_to", {"report_to": "flyte"}),
    ],
)
def test_a_missing_package_is_named_before_training(key, training, monkeypatch):
    for module in ("bitsandbytes", "galore_torch", "apollo_torch", "wandb", "flytekit"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(values, "is_vllm_available", lambda: False)
    monkeypatch.setattr(values, "is_liger_kernel_available", lambda: False)
    (problem,) = check_config(parse_config(config(**training)))
    assert problem.startswith(f"training.{key}: ")
    assert "install" in problem


def test_the_place_in_the_file_is_told(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config(learning_rate="fast", top_p=2, nonsense=1)))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml", (), setting_findings)
    lines = [line.split(": ")[:2] for line in str(caught.value).splitlines()[1:]]
    assert [key for _, key in lines] == ["training.learning_rate", "training.nonsense", "training.top_p"]
    assert all(where.rpartition(":")[2].isdigit() for where, _ in lines)


def test_every_default_of_trl_is_accepted():
    fields = [field for field in dataclasses.fields(GRPOConfig) if field.init]
    defaults = {f.name: f.default_factory() if f.default is dataclasses.MISSING else f.default for f in fields}
    assert list(setting_findings(defaults)) == []


@pytest.mark.parametrize(
    "training",
    [
        {"learning_rate": 1, "max_grad_norm": float("inf"), "warmup_steps": 0.1},
        {"scale_rewards": False, "bf16": True, "loss_type": "dr_grpo"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"gradient_checkpointing_kwargs": {"use_reentrant": False}, "optim": "sgd"},
        {"generation_kwargs": {"no_repeat_ngram_size": 3}, "min_p": 0.1, "top_k": 20},
        {"accelerator_config": {"even_batches": False}, "lr_scheduler_type": "constant"},
    ],
)
def test_good_values_have_no_problem(training):
    assert check_config(parse_config(config(**training))) == []


def test_whole_numbers_become_the_floats_that_generation_wants():
    args = grpo_config(parse_config(config(temperature=2, repetition_penalty=1)), "unused")
    assert (type(args.temperature), type(args.repetition_penalty)) == (float, float)


@pytest.mark.parametrize("key", ["loss_type", "importance_sampling_level", "multi_objective_aggregation"])
def test_the_choices_are_those_that_trl_knows(key):
    source = inspect.getsource(GRPOTrainer)
    assert all(f'"{choice}"' in source for choice in CHOICES[key])


@pytest.mark.slow
def test_any_values_are_used_or_refused():
    names = sorted(setting_names())
    words = ["auto", "no", "steps", 2, 4, 8, "bf16", "full_shard", "{}", "grpo", "token", [1, 2], {"x": 1}, 1.5, 100]

    def attack(rng):
        chosen = {rng.choice(names): rng.choice([value(rng), *words]) for _ in range(rng.choice([1, 1, 2, 3]))}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if problems := check_config(parse_config(config(**chosen))):
                raise ConfigError("\n".join(problems))

    assert survey(attack) > 40

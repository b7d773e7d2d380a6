"""``DomainGRPOConfig``: read from YAML and the command line, logged and saved as plain data, refused by name."""

import inspect
import json
import pickle

import pytest
import yaml
from trl import GRPOConfig, GRPOTrainer, TrlParser

from counterpoint.errors import ConfigError, CounterpointError, DomainError, StrategyError
from counterpoint.surgery import Strategy
from counterpoint.training import DomainGRPOConfig, DomainGRPOTrainer
from counterpoint.training.config import own_settings
from trainer_helpers import DATA, REWARDS, grpo_args

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

OWN = {"strategy", "shares", "share_rule", "buffers", "balance", "dynamic_sampling", "schedule", "curriculum"}
OWN |= {"grams_every", "per_domain", "run"}


def test_the_constructor_takes_grpo_trainers_arguments_at_their_places():
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (DomainGRPOTrainer, GRPOTrainer))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


def test_trls_parser_reads_our_settings_from_yaml_and_the_command_line(tmp_path):
    file = tmp_path / "grpo.yaml"
    given = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "shares": {"math": 2, "code": 1}}
    changes = [{"step": 1, "weights": {"math": 2.0}}]
    more = {"strategy": {"grouping": "layer", "weighting": "pcgrad"}, "schedule": changes}
    file.write_text(yaml.safe_dump(given | more))
    (args,) = TrlParser([DomainGRPOConfig]).parse_args_and_config(
        ["--config", str(file), "--share_rule", "carry", "--grams_every", "5", "--balance", "tokens"]
    )
    assert own_settings(args) == {
        "strategy": {"grouping": "layer", "weighting": "pcgrad"},
        "shares": {"math": 2, "code": 1},
        "share_rule": "carry",
        "buffers": "device",
        "balance": "tokens",
        "dynamic_sampling": 0,
        "schedule": changes,
        "curriculum": None,
        "grams_every": 5,
        "per_domain": None,
        "run": None,
    }
    shares, strategy = '{"math": 3, "code": 1}', '{"grouping": "tensor", "weighting": "pcgrad"}'
    arguments = ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false", "--shares", shares]
    (args,) = TrlParser([DomainGRPOConfig]).parse_args_and_config([*arguments, "--strategy", strategy])
    assert (args.shares, args.strategy) == (json.loads(shares), json.loads(strategy))
    (args,) = TrlParser([DomainGRPOConfig]).parse_args_and_config([*arguments, "--strategy", "pcgrad"])
    assert args.strategy == "pcgrad"
    balance = '{"name": "worst", "options": {"clip": 0.2}}'
    (args,) = TrlParser([DomainGRPOConfig]).parse_args_and_config([*arguments, "--balance", balance])
    assert args.balance == json.loads(balance)
    (args,) = TrlParser([DomainGRPOConfig]).parse_args_and_config([*arguments, "--schedule", json.dumps(changes)])
    assert args.schedule == changes
    curriculum = {"function": "mine:mix", "every": 3}
    for written in ("mine:mix", json.dumps(curriculum)):
        (args,) = TrlParser([DomainGRPOConfig]).parse_args_and_config([*arguments, "--curriculum", written])
        assert args.curriculum in ("mine:mix", curriculum)


def test_every_setting_of_ours_has_help():
    assert set(own_settings(GRPOConfig.__new__(GRPOConfig))) == OWN
    assert all(DomainGRPOConfig.__dataclass_fields__[name].metadata["help"] for name in OWN)


def test_a_rule_of_a_script_is_logged_and_saved_by_its_name(tmp_path):
    def rule(name, shape):
        return name.split(".")[0]

    args = grpo_args(tmp_path, strategy=Strategy("mine", rule, {"type": "pcgrad", "protect": ("math",)}))
    named = {"grouping": f"{__name__}:{rule.__qualname__}", "weighting": {"type": "pcgrad", "protect": ["math"]}}
    assert json.loads(args.to_json_string())["strategy"] == named
    assert pickle.loads(pickle.dumps(args)).strategy == named
    assert args.strategy.grouping is rule


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"grams_every": 0}, ConfigError, "grams_every=0: it must be a whole number of steps, 1 or more"),
        ({"grams_every": 1.5}, ConfigError, "grams_every=1.5"),
        ({"buffers": "disk"}, StrategyError, "buffers='disk' is unknown.*bfloat16"),
        ({"strategy": "mgss"}, StrategyError, "Unknown strategy 'mgss': did you mean 'mgs'"),
        ({"strategy": {"grouping": "layer"}}, StrategyError, "needs a name, or grouping and weighting together"),
        ({"share_rule": "cary"}, ConfigError, "share_rule='cary': did you mean 'carry'"),
        ({"shares": {"math": 0}}, DomainError, r"shares\['math'\]=0: a share must be a number above 0"),
        ({"shares": {"math": "2"}}, DomainError, r"shares\['math'\]='2'"),
        ({"shares": [1, 2]}, DomainError, "give a mapping from domain to share"),
    ],
)
def test_values_that_cannot_be_used_are_refused_when_they_are_given(settings, error, message, tmp_path):
    with pytest.raises(error, match=message):
        grpo_args(tmp_path, **settings)


def test_a_plain_configuration_of_trl_has_our_defaults(tiny_model, tiny_tokenizer, tmp_path):
    ours = grpo_args(tmp_path)
    plain = GRPOConfig.__new__(GRPOConfig)
    plain.__dict__ = {key: value for key, value in ours.__dict__.items() if key not in OWN}
    trainer = DomainGRPOTrainer(str(tiny_model), REWARDS, plain, DATA, None, tiny_tokenizer)
    assert trainer.strategy.name == "mgs"
    assert trainer.args is plain
    trainer.train()
    assert "conflict_rate" in trainer.state.log_history[0]


CHANGES = [
    ("strategy", {"strategy": "pcgrad"}, "strategy was 'mgs' and is 'pcgrad' now"),
    ("shares", {"shares": {"math": 3, "code": 1}}, r"shares was {'math': 1.0, 'code': 1.0} and is {'math': 3.0"),
    ("share_rule", {"share_rule": "carry"}, "share_rule was 'exact' and is 'carry' now"),
    ("schedule", {"schedule": [{"step": 2, "weights": {"math": 2}}]}, "schedule was None and is"),
    ("curriculum", {"curriculum": lambda history, mix: None}, "curriculum was None and is"),
    ("batch", {"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was 4 and is 2 now"),
    ("generation", {"steps_per_generation": 8}, "steps_per_generation was 4 and is 8 now"),
    ("completions", {"num_generations": 2}, "num_generations was 4 and is 2 now"),
    ("seed", {"seed": 7}, "seed was 42 and is 7 now"),
]


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    args = grpo_args(folder, max_steps=1, save_strategy="steps", save_steps=1)
    DomainGRPOTrainer(str(tiny_model), REWARDS, args, DATA, None, tiny_tokenizer).train()
    return folder / "checkpoint-1"


@pytest.mark.parametrize(("changes", "message"), [change[1:] for change in CHANGES], ids=[c[0] for c in CHANGES])
def test_a_run_is_not_resumed_with_what_makes_other_steps(
    changes, message, checkpoint, tiny_model, tiny_tokenizer, tmp_path
):
    trainer = DomainGRPOTrainer(str(tiny_model), REWARDS, grpo_args(tmp_path, **changes), DATA, None, tiny_tokenizer)
    with pytest.raises(CounterpointError, match=message):
        trainer.train(resume_from_checkpoint=checkpoint)


def test_a_run_is_not_resumed_on_other_domains(checkpoint, tiny_model, tiny_tokenizer, tmp_path):
    data, rewards = {"math": DATA["math"], "qa": DATA["code"]}, {"math": REWARDS["math"], "qa": REWARDS["code"]}
    trainer = DomainGRPOTrainer(str(tiny_model), rewards, grpo_args(tmp_path), data, None, tiny_tokenizer)
    with pytest.raises(CounterpointError, match=r"rows of the domains was .*'code', 5.* and is .*'qa', 5"):
        trainer.train(resume_from_checkpoint=checkpoint)


def test_the_saved_arguments_hold_our_settings(checkpoint):
    import torch

    args = torch.load(checkpoint / "training_args.bin", weights_only=False)
    assert (args.strategy, args.share_rule, args.grams_every) == ("mgs", "exact", 1)


def test_the_model_card_names_domains_strategy_papers_and_held_out_rewards(tiny_model, tiny_tokenizer, tmp_path):
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    args = grpo_args(tmp_path, strategy="mgs", per_device_eval_batch_size=4, **settings)
    trainer = DomainGRPOTrainer(str(tiny_model), REWARDS, args, DATA, {"math": DATA["math"][:2]}, tiny_tokenizer)
    trainer.train()
    card = (tmp_path / "README.md").read_text()
    reward = trainer.held_out["math"]
    assert f"| math | 50.0% | {reward:.3f} |\n| code | 50.0% | |" in card
    for part in ("strategy `mgs`", "papers/2602.02301", "cai2026modular", "shao2024deepseekmath", "vonwerra2020trl"):
        assert part in card

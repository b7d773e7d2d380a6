"""Settings that one domain has for itself: what is refused, and that evaluations, runs and checkpoints know them."""

import pytest
from transformers import AutoModelForCausalLM

from counterpoint.config import load_config, parse_config
from counterpoint.diagnosis.subject import completions_for, open_subject
from counterpoint.domains import Domain, LoadSummary, WeightedReward
from counterpoint.engine.evaluate import evaluation_of
from counterpoint.engine.prepare import check_config
from counterpoint.errors import ConfigError, DomainError, RunError, UnsupportedError
from counterpoint.evaluation import EvaluationPlan, Sampling, evaluate
from counterpoint.evaluation.stopping import stop_length
from counterpoint.runs import RunDirectory
from counterpoint.training import DomainGRPOTrainer
from counterpoint.training.config import total_steps
from trainer_helpers import DATA, REWARDS, GradientTape, digits, grpo_args, relative_error

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def build(model, tokenizer, folder, data=DATA, **settings):
    given = {key: settings.pop(key) for key in ("tools", "rollout_func", "environment_factory") if key in settings}
    args = grpo_args(folder, **settings)
    return DomainGRPOTrainer(str(model), REWARDS, args, data, processing_class=tokenizer, **given)


# Refusals

VLLM = {"use_vllm": True, "vllm_mode": "server"}


@pytest.mark.parametrize(
    ("error", "own", "settings"),
    [
        (ConfigError, {"temperatur": 0.8}, {}),
        (ConfigError, {"temperature": 0}, {}),
        (ConfigError, {"top_p": 1.5}, {}),
        (ConfigError, {"beta": float("inf")}, {"beta": 0.1}),
        (ConfigError, {"num_generations": 1}, {}),
        (ConfigError, {"stop": []}, {}),
        (ConfigError, {"stop": [""]}, {}),
        (ConfigError, {"stop": "END"}, {}),
        (ConfigError, {"max_completion_length": 9}, {}),
        (ConfigError, {"beta": 0.1}, {}),
        (ConfigError, {"epsilon": 0.1}, {"loss_type": "sapo"}),
        (ConfigError, {"temperature": 0.5}, {"generation_kwargs": {"temperature": 0.7}}),
        (UnsupportedError, {"temperature": 0.5}, VLLM),
        (UnsupportedError, {"top_p": 0.5}, {"use_vllm": True, "vllm_tensor_parallel_size": 2}),
        (UnsupportedError, {"top_p": 0.5}, {"use_transformers_continuous_batching": True}),
        (UnsupportedError, {"num_generations": 2}, VLLM),
        (UnsupportedError, {"num_generations": 2}, {"scale_rewards": "batch"}),
        (UnsupportedError, {"num_generations": 2}, {"multi_objective_aggregation": "normalize_then_sum"}),
        (UnsupportedError, {"num_generations": 2}, {"balance": "prompts"}),
        (UnsupportedError, {"stop": ["END"]}, {"mask_truncated_completions": True}),
        (UnsupportedError, {"stop": ["END"]}, {"tools": [len]}),
        (UnsupportedError, {"temperature": 0.5}, {"rollout_func": len}),
        (UnsupportedError, {"max_completion_length": 4}, {"environment_factory": object}),
        (DomainError, {"num_generations": 3}, {"gradient_accumulation_steps": 2}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value.__name__,
)
def test_what_cannot_be_exact_is_refused_before_a_model_is_loaded(error, own, settings, tmp_path):
    with pytest.raises(error, match="math") as found:
        build("no/model", None, tmp_path, per_domain={"math": own}, **settings)
    assert next(iter(own)) in str(found.value)


def test_an_unknown_domain_and_images_are_refused(tmp_path):
    with pytest.raises(DomainError, match=r"'maths'.*'math'"):
        build("no/model", None, tmp_path, per_domain={"maths": {"beta": 0.0}})
    with pytest.raises(ConfigError, match="per_domain"):
        grpo_args(tmp_path, per_domain=["math"])
    pictured = {name: [row | {"image": None} for row in rows] for name, rows in DATA.items()}
    with pytest.raises(UnsupportedError, match="images"):
        build("no/model", None, tmp_path, pictured, per_domain={"math": {"top_p": 0.5}})


def settings(own, training=None, **overrides):
    trained = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "num_generations": 4,
        "max_completion_length": 8,
    }
    return {
        "model": "pocket",
        "strategy": "mixed",
        "domains": {"math": {"source": "pocket", "training": own}, "code": {"source": "pocket"}},
        "training": trained | (training or {}),
        "evaluation": {"prompts": 2, "samples": 2, "temperature": 0.9},
        "run": {"device": "cpu"},
    } | overrides


def test_a_configuration_is_checked_as_a_script_is(tmp_path):
    assert check_config(parse_config(settings({"temperature": 0.5, "num_generations": 8}))) == []
    for own, training in (
        ({"max_completion_length": 9}, {}),
        ({"beta": 0.1}, {}),
        ({"stop": ["END"]}, {"mask_truncated_completions": True}),
        ({"num_generations": 16}, {"gradient_accumulation_steps": 6}),
    ):
        (problem,) = check_config(parse_config(settings(own, training)))
        assert "math" in problem
        assert next(iter(own)) in problem
    with pytest.raises(ConfigError, match=r"domains\.math\.training\.beat"):
        parse_config(settings({"beat": 0.1}))
    file = tmp_path / "my.yaml"
    file.write_text(parse_config(settings({"beta": 0.0}, {"beta": 0.1})).to_yaml())
    config = load_config(file, ["domains.math.training.beta=0.3", "domains.code.training={stop: [END]}"])
    assert config.domains["math"].training.own == {"beta": 0.3}
    assert config.domains["code"].training.own == {"stop": ["END"]}


# Evaluation


@pytest.mark.parametrize("text", ["12+34=46", "aXbX", "X", "abc", "ab", "abX", "Xab"])
def test_the_first_token_that_completes_a_stop_string_is_the_last(text, tiny_tokenizer):
    stop = ["X", "+34", "bc"]
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    prefixes = [tiny_tokenizer.decode(ids[:length]) for length in range(1, len(ids) + 1)]
    expected = next((i for i, prefix in enumerate(prefixes, 1) if any(s in prefix for s in stop)), None)
    assert stop_length(tiny_tokenizer, ids, stop) == expected


def test_an_evaluation_follows_each_domain(tiny_model, tiny_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    summary = LoadSummary(*[0] * len(LoadSummary.__dataclass_fields__))
    seen = {}

    def keep(completions, domain, **_):
        seen.setdefault(domain[0], []).extend(completions)
        return digits(completions)

    reward = (WeightedReward("digits", 1.0, keep),)
    domains = [Domain(name, [], DATA[name], reward, 1.0, summary) for name in ("math", "code")]
    letters = list("abcdefghijklmnopqrstuvwxyz")
    own = {"math": {"temperature": 1e-4, "max_completion_length": 3}, "code": {"stop": letters}}
    plan = EvaluationPlan(2, True, 1, Sampling(max_new_tokens=12), own)
    math, code = evaluate(model, tiny_tokenizer, domains, plan)
    assert math.completion_length <= 3
    halves = seen["math"][: 2 * len(DATA["math"])]
    assert halves[::2] == halves[1::2]  # so cold that it is greedy
    assert all(not any(letter in text[:-1] for letter in letters) for text in seen["code"])
    assert code.truncated < 1
    assert code.completion_length < 12
    plain = EvaluationPlan(2, True, 1, Sampling(max_new_tokens=12))
    assert plain.sampling_of("math") == plain.sampling


def test_a_domains_own_settings_stand_above_those_of_evaluations(tiny_model):
    own = {"temperature": 0.5, "stop": ["END"]}
    config = parse_config(settings(own, model=str(tiny_model)))
    evaluation = evaluation_of(config, config.model)
    math, code = map(evaluation.plan.sampling_of, ("math", "code"))
    assert (math.temperature, math.stop, math.max_new_tokens) == (0.5, ("END",), 8)
    assert (code.temperature, code.stop, code.max_new_tokens) == (0.9, (), 8)
    other = parse_config(settings(own | {"temperature": 0.4}, model=str(tiny_model)))
    assert evaluation.key(config.model) != evaluation_of(other, config.model).key(config.model)


def test_a_diagnosis_samples_as_training_does(tiny_model):
    config = parse_config(settings({"max_completion_length": 3}, model=str(tiny_model)))
    found = completions_for(open_subject(config, tiny_model), prompts=4, samples=2)
    longest = {name: max(len(item.completion_ids) for item in rollouts.items) for name, rollouts in found.items()}
    assert longest["math"] <= 3 < longest["code"]


# Runs and checkpoints

OWN = {
    "math": {"temperature": 0.7, "num_generations": 2, "beta": 0.0, "stop": ["1"]},
    "code": {"top_p": 0.9, "max_completion_length": 5, "epsilon": 0.1},
}


def test_a_resumed_training_goes_on_with_the_same_numbers(tiny_model, tiny_tokenizer, tmp_path):
    def trained(tape, checkpoint=None, per_domain=OWN):
        settings = {"beta": 0.1, "steps_per_generation": 8, "save_strategy": "steps", "save_steps": 3, "max_steps": 4}
        args = grpo_args(tmp_path, per_domain=per_domain, **settings)
        trainer = DomainGRPOTrainer(
            str(tiny_model), REWARDS, args, DATA, processing_class=tiny_tokenizer, callbacks=[tape]
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return tape.steps

    whole = trained(GradientTape())
    checkpoint = str(tmp_path / "checkpoint-3")
    (last,) = trained(GradientTape(), checkpoint)
    assert relative_error(last, whole[3]) == 0
    with pytest.raises(RunError, match="per_domain"):
        trained(GradientTape(), checkpoint, OWN | {"math": {"temperature": 0.6}})


def test_a_scripts_run_holds_and_follows_them(tiny_model, tiny_tokenizer, tmp_path):
    args = grpo_args(tmp_path / "unused", run=str(tmp_path / "mine"), per_domain=OWN, beta=0.1, max_steps=1)
    held_out = {name: rows[:2] for name, rows in DATA.items()}
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    DomainGRPOTrainer(model, REWARDS, args, DATA, held_out, processing_class=tiny_tokenizer).train()
    config = load_config(tmp_path / "mine" / "config.yaml")
    assert {name: domain.training.own for name, domain in config.domains.items()} == OWN
    lines = RunDirectory.open(tmp_path / "mine", write=False).lines("evals.jsonl")
    assert all(line["completion_length"] <= 5 for line in lines if line["domain"] == "code")


def test_epochs_count_prompts_where_groups_differ(tiny_model, tiny_tokenizer, tmp_path):
    per_domain = {"math": {"num_generations": 2}}
    data = {"math": DATA["math"][:4], "code": DATA["code"][:2]}
    trainer = build(tiny_model, tiny_tokenizer, tmp_path, data, per_domain=per_domain, max_steps=-1, num_train_epochs=1)
    steps = trainer._sampler.steps_per_epoch
    assert steps == 1  # a step holds 8 completions of each: 4 prompts and 2
    assert total_steps(trainer.args, 6, trainer.shares) == steps

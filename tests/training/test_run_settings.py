"""What a whole run makes of its settings: one prompt and one sampling for training and evaluation, names, threads."""

import json
import threading
import weakref
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.generation.utils import GenerationMixin
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import GRPOTrainer

import counterpoint.engine.prepare as stage_trainer
from counterpoint.config import parse_config
from counterpoint.diagnosis.subject import completions_for, open_subject
from counterpoint.engine import train
from counterpoint.engine.prepare import total_steps
from counterpoint.errors import DomainError
from counterpoint.report import write_report
from counterpoint.runs import Reporter
from counterpoint.runs.grams import read_grams
from counterpoint.training import values
from counterpoint.training.metrics import no_signal
from trainer_helpers import digits, grpo_args

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

THINKING = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}...{% else %}!!!!!!!!{% endif %}"
)


def config(model, folder, training=None, **overrides):
    settings = {
        "model": str(model),
        "strategy": "mixed",
        "domains": {"math": {"source": "pocket"}, "code": {"source": "pocket"}},
        "training": {
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "num_generations": 4,
            "max_completion_length": 8,
            "gradient_checkpointing": False,
        }
        | (training or {}),
        "evaluation": {"prompts": 2, "samples": 1, "greedy": True},
        "run": {"dir": str(folder), "save_every": 10, "device": "cpu"},
    }
    return parse_config(settings | overrides)


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("epochs", [1, 2])
def test_epochs_are_counted_as_trl_counts_them(tiny_model, tmp_path, iterations, epochs):
    args = grpo_args(tmp_path, max_steps=-1, num_train_epochs=epochs, num_iterations=iterations)
    rows = Dataset.from_list([{"prompt": f"{i}+1="} for i in range(16)])
    planned = []

    class Plan(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            planned.append(state.max_steps)
            raise InterruptedError

    trainer = GRPOTrainer(str(tiny_model), digits, args, rows, callbacks=[Plan()])
    with pytest.raises(InterruptedError):
        trainer.train()
    assert planned == [total_steps(args, len(rows))]
    assert planned[0] == 4 * epochs * iterations


def test_a_run_outside_the_main_thread_trains(tiny_model, tmp_path):
    outcome = []

    def work():
        try:
            outcome.append(train(config(tiny_model, tmp_path), "run").state["status"])
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == ["done"]


@pytest.fixture(scope="module")
def wilful_model(tiny_model, tmp_path_factory):
    """A model with a chat template that heeds an argument, and with generation settings of its own."""
    folder = tmp_path_factory.mktemp("wilful")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    model.generation_config.update(do_sample=True, repetition_penalty=3.0, top_k=3, min_p=0.2, min_new_tokens=2)
    tokenizer.chat_template = THINKING
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def generations(monkeypatch):
    """Prompts and effective settings of every generation, as ``(tokens, settings)``."""
    seen = []
    prepare, generate = GenerationMixin._prepare_generation_config, GenerationMixin.generate

    def spied_prepare(self, *args, **kwargs):
        found = prepare(self, *args, **kwargs)
        seen[-1][1].update(found[0].to_dict())
        return found

    def spied(self, *args, **kwargs):
        seen.append((kwargs["input_ids"], {}))
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "_prepare_generation_config", spied_prepare)
    monkeypatch.setattr(GenerationMixin, "generate", spied)
    return seen


DRAWING = ("temperature", "top_p", "top_k", "min_p")
SAMPLING = {"repetition_penalty": 1.5, "top_k": 7, "generation_kwargs": {"no_repeat_ngram_size": 4}}


@pytest.mark.parametrize("sampling", [{}, SAMPLING, {"min_p": 0.1}], ids=["defaults", "own", "min_p"])
def test_evaluation_and_diagnosis_sample_as_training_does(wilful_model, tmp_path, generations, sampling):
    chosen = config(wilful_model, tmp_path, sampling | {"chat_template_kwargs": {"enable_thinking": False}})
    run = train(chosen, "run")
    subject = open_subject(chosen)
    completions_for(subject, prompts=2, samples=1)
    tokenizer = subject.tokenizer
    assert all(tokenizer.decode(ids[0], skip_special_tokens=True).endswith("=...") for ids, _ in generations)
    assert all(sample["prompt"].endswith("=...") for sample in run.lines("samples.jsonl"))

    training = next(settings for _, settings in generations if settings["disable_compile"])
    others = [settings for _, settings in generations if not settings["disable_compile"]]
    assert len(others) == 2 * 4 + 2  # sampled and greedy, before and after, of two domains; then the diagnosis
    for settings in others:
        own = {"disable_compile"} if settings["do_sample"] else {"disable_compile", "do_sample", *DRAWING}
        assert [key for key in training if key not in own and settings.get(key) != training[key]] == []
    assert training["repetition_penalty"] == sampling.get("repetition_penalty", 1.0)  # and not the model's 3


def test_prompts_are_measured_as_they_are_rendered(wilful_model, tmp_path):
    def build(**rendering):
        small = {"domains": {"math": {"source": "pocket"}}, "evaluation": {"prompts": 1}, "max_prompt_tokens": 13}
        return open_subject(config(wilful_model, tmp_path, {"chat_template_kwargs": rendering}, **small))

    assert build(enable_thinking=False).domains["math"].summary.dropped_too_long == 0
    with pytest.raises(DomainError, match="longer than max_prompt_tokens=13"):
        build()


class FakeTracker(TrainerCallback):
    """Writes where TensorBoard writes."""

    def on_train_begin(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / "runs"
        folder.mkdir(parents=True)
        (folder / "events").write_text(json.dumps({"name": args.run_name}))


def test_trackers_get_the_runs_name_and_keep_their_files(tiny_model, tmp_path, monkeypatch):
    build = stage_trainer.DomainGRPOTrainer.__init__

    def with_tracker(self, *args, **kwargs):
        build(self, *args, callbacks=[FakeTracker()], **kwargs)

    monkeypatch.setattr(stage_trainer.DomainGRPOTrainer, "__init__", with_tracker)
    chosen = config(tiny_model, tmp_path, {"max_steps": 2, "log_completions": True}, strategy="sequential")
    run = train(chosen, "my-run")
    for stage in ("stage-1", "stage-2"):
        folder = run.path / "trackers" / stage
        assert json.loads((folder / "runs" / "events").read_text()) == {"name": "my-run"}
        assert list((folder / "completions").glob("*.parquet"))
        assert not list(folder.glob("checkpoint-*"))


class Spy(TrainerCallback):
    """A tracker that is open from the beginning of a training to its end."""

    heard = None

    def __init__(self):
        self.open = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.open = True

    def on_train_end(self, args, state, control, **kwargs):
        self.open = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        assert self.open
        Spy.heard.append((state.global_step, logs))


def test_trackers_count_over_stages_and_get_the_held_out_scores(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "spy", Spy)
    monkeypatch.setattr(values, "get_available_reporting_integrations", lambda: ["spy"])
    monkeypatch.setattr(Spy, "heard", [])
    chosen = {"max_steps": 4, "report_to": "spy"}
    run = train(config(tiny_model, tmp_path, chosen, strategy="sequential"), "my-run")
    steps = [step for step, logs in Spy.heard if "loss" in logs]
    assert steps == [1, 2, 3, 4]
    scored = {step: logs for step, logs in Spy.heard if any(key.startswith("eval_held_out/") for key in logs)}
    lines = {(line["step"], line["domain"]): line["mean"] for line in run.lines("evals.jsonl")}
    assert lines == {
        (step, key.split("/")[1]): mean
        for step, logs in scored.items()
        for key, mean in logs.items()
        if key.count("/") == 1
    }


@pytest.mark.parametrize("strategy", ["mixed", "mgs"])
def test_grams_are_recorded_every_so_many_steps(tiny_model, tmp_path, strategy):
    settings = {"strategy": strategy, "evaluation": {"before": False, "prompts": 2, "samples": 1, "greedy": False}}
    every = {"run": {"dir": str(tmp_path), "device": "cpu", "grams_every": 3}}
    run = train(config(tiny_model, tmp_path, {"max_steps": 5}, **settings, **every), "run")
    assert read_grams(run.path / "grams.jsonl").step_S.tolist() == [1, 4]


def test_a_stage_is_gone_before_the_next_ones_model_is_loaded(tiny_model, tmp_path, monkeypatch):
    stages, load = [], stage_trainer.load_model

    class Watch(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, optimizer=None, **kwargs):
            moments = [value for entry in optimizer.state.values() for value in entry.values()]
            stages.append([weakref.ref(thing) for thing in (model, optimizer, moments[-1])])

    def loading(*args):
        assert [ref() for refs in stages for ref in refs if ref() is not None] == []
        return load(*args)

    build = stage_trainer.DomainGRPOTrainer.__init__
    monkeypatch.setattr(
        stage_trainer.DomainGRPOTrainer, "__init__", lambda *args, **kwargs: build(*args, callbacks=[Watch()], **kwargs)
    )
    monkeypatch.setattr(stage_trainer, "load_model", loading)
    train(config(tiny_model, tmp_path, {"max_steps": 2}, strategy="sequential"), "run")
    assert len(stages) == 2


def teach(share, step=1, **rewards):
    return (
        {"step": step}
        | {f"zero_advantage/{d}": share for d in rewards}
        | {f"reward/{d}": r for d, r in rewards.items()}
    )


def test_domains_without_any_signal_are_named():
    assert no_signal([]) is None
    assert no_signal([teach(1.0, math=0.0, code=0.5), teach(0.75, 2, math=0.25, code=0.5)]) is None
    assert "from rewards: " in no_signal([teach(1.0, math=0.0), teach(1.0, 2, code=1.0)])
    assert "(mean 0.000 in math, 1.000 in code)" in no_signal([teach(1.0, math=0.0), teach(1.0, 2, code=1.0)])
    assert no_signal([teach(1.0, math=0.0) | teach(0.5, code=1.0)]).startswith("Nothing was learned in math: ")


def test_a_run_in_which_nothing_was_learned_says_so(tiny_model, tmp_path, monkeypatch):
    heard = Listener()
    run = train(config(tiny_model, tmp_path, domains={"math": {"source": "pocket"}}), "run", heard)
    assert run.state["no_signal"] == heard.heard[-1]
    assert run.state["no_signal"].startswith("Nothing was learned from rewards: ")
    assert "Nothing was learned from rewards: " in write_report(run.path).read_text()


class Listener(Reporter):
    """Keeps the messages."""

    def __init__(self):
        self.heard = []

    def message(self, text):
        self.heard.append(text)

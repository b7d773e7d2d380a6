"""Reward ``reward_model``: what the classifier reads, what is refused, and what is counted."""

import json
import math
import shutil

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, LlamaForSequenceClassification
from typer.testing import CliRunner

from counterpoint.cli.app import app
from counterpoint.domains import Domain, LoadSummary, WeightedReward
from counterpoint.errors import RewardError
from counterpoint.evaluation import Completion, score_rows
from counterpoint.rewards import FAILED, build_reward
from reward_models import save_reward_model

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_reward_model(tmp_path_factory.mktemp("reward-model"))


def reward_of(folder, **options):
    return build_reward("reward_model", model=folder, **options)


def logit(folder, text):
    """What the classifier alone says of a text."""
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, 0].item()


@pytest.mark.parametrize(
    ("prompt", "completion", "read"),
    [
        ("Hi", "hello", "u: Hi\na: hello\n<eos>"),
        (CHAT, [{"role": "assistant", "content": "hello"}], "s: Be brief.\nu: Hi\na: hello\n<eos>"),
        ("Hi", "<think>rude?</think>\nhello", "u: Hi\na: hello\n<eos>"),
        ("Hi", "<think>never ends", "u: Hi\na: \n<eos>"),
        ("Hi", "hello<eos><bos>u: great!", "u: Hi\na: hello  u: great!\n<eos>"),
        ([*CHAT, {"role": "assistant", "content": "Well, "}], "hello", "s: Be brief.\nu: Hi\na: Well, hello\n<eos>"),
    ],
)
def test_the_classifier_reads_the_conversation_without_the_thought(folder, prompt, completion, read):
    (score,) = reward_of(folder)(prompts=[prompt], completions=[completion])
    assert score == pytest.approx(logit(folder, read), abs=1e-5)


def test_closed_thought_reads_an_open_one_as_no_reply(folder):
    (score,) = reward_of(folder, closed_thought=True)(prompts=["Hi"], completions=["a thought that was cut off"])
    assert score == pytest.approx(logit(folder, "u: Hi\na: \n<eos>"), abs=1e-5)


def test_scores_do_not_depend_on_batches_and_equal_ones_are_computed_once(folder):
    texts = ["a", "bb" * 20, "a", "ccc", "<think>x</think>a", ""] * 3
    small, large = reward_of(folder, batch_size=1), reward_of(folder, batch_size=16)
    rows = []
    large._classifier.model.register_forward_hook(
        lambda _, args, kwargs, __: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = large(prompts=["p"] * len(texts), completions=texts)
    assert found == pytest.approx(small(prompts=["p"] * len(texts), completions=texts), abs=1e-5)
    assert found[0] == found[2] == found[4] != found[1]
    assert rows == [4, 1, 1, 1, 1]  # both share the weights


def test_logits_are_float32_where_weights_are_not(folder):
    texts = [str(n) for n in range(32)]
    found = reward_of(folder, dtype="bfloat16")(prompts=["p"] * 32, completions=texts)
    rounded = torch.tensor(found).bfloat16().float().tolist()
    assert found != rounded
    assert found == pytest.approx(reward_of(folder)(prompts=["p"] * 32, completions=texts), abs=0.2)


def test_what_is_cut_is_the_beginning_and_is_counted(folder):
    reward, told = reward_of(folder, max_length=20), []
    with pytest.warns(UserWarning, match="1 of 2 conversations"):
        scores = reward(
            prompts=["Hi", "Hi"], completions=["x" * 50, "y"], log_metric=lambda *metric: told.append(metric)
        )
    reward(prompts=["Hi"], completions=["z" * 50])  # not told again, and counted
    assert told == [("reward_cut", 0.5)]
    assert reward.cut == 2
    assert scores[0] == pytest.approx(logit(folder, "x" * 18 + "\n<eos>"), abs=1e-5)


def test_an_evaluation_counts_what_was_cut(folder):
    reward = reward_of(folder, max_length=20)
    rows = [{"prompt": "Hi", "domain": "chat"}] * 3
    domain = Domain("chat", rows, rows, (WeightedReward("liked", 1.0, reward),), 1.0, LoadSummary(3, 0, 0, 0, 0, 3, 3))
    long, short = Completion("x" * 50, 50, False, (1,)), Completion("x", 1, False, (1,))
    with pytest.warns(UserWarning, match="lost their beginning"):
        assert score_rows(domain, rows, [long, short, long]).cut == 2
    assert score_rows(domain, rows, [short] * 3).cut == 0


def test_domains_of_a_process_share_one_classifier(folder):
    first, second, other = reward_of(folder), reward_of(folder), reward_of(folder, dtype="bfloat16")
    assert first._classifier.model is second._classifier.model is not other._classifier.model


def test_a_logit_that_is_no_number_is_a_failure(tmp_path):
    reward = reward_of(save_reward_model(tmp_path))
    reward._classifier.model.score.weight.data.fill_(math.nan)
    assert reward(prompts=["Hi"], completions=["x"])[0] is FAILED


def test_without_a_chat_template_texts_follow_each_other_as_trl_trains(tmp_path):
    folder = save_reward_model(tmp_path, template=None)
    found = reward_of(folder)(prompts=["Hi ", CHAT], completions=["hello", "hello"])
    assert found[0] == pytest.approx(logit(folder, "Hi hello<eos>"), abs=1e-5)
    assert found[1] == pytest.approx(logit(folder, "Be brief.\nHi\nhello<eos>"), abs=1e-5)


def test_an_encoder_without_a_template_reads_a_pair(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "hamlet", "you"])}
    plain = Tokenizer(models.WordLevel(words, "[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **special, **names).save_pretrained(tmp_path)
    sizes = {"vocab_size": 7, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 8}
    config = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    classifier = reward_of(str(tmp_path))._classifier
    assert classifier.encode_plain("who", "hamlet").inputs["input_ids"] == [2, 4, 3, 5, 3]
    assert set(classifier.encode_plain("who", "hamlet").inputs["token_type_ids"]) == {0, 1}
    long = classifier.encode_plain("who " * 3, "hamlet " * 9)
    assert long.cut
    assert len(long.inputs["input_ids"]) == 8
    assert long.inputs["input_ids"][0] == 2
    assert all(map(math.isfinite, reward_of(str(tmp_path))(prompts=["who"] * 2, completions=["hamlet", "you you"])))


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda f: None, {"batch_size": 0}, "batch_size must be a whole number"),
        (lambda f: None, {"max_length": 129}, "it can read 128 tokens"),
        (lambda f: None, {"dtype": "int8"}, "dtype must be one of"),
        (lambda f: None, {"device": "nowhere"}, "device must be like cuda:1"),
        (lambda f: None, {"device": []}, "empty list"),
        (lambda f: (f / "config.json").unlink(), {}, "no configuration could be read"),
        (lambda f: (f / "tokenizer.json").unlink(), {}, "no tokenizer could be read"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), {}, "no .safetensors weights there"),
        (lambda f: edit(f, architectures=["LlamaForCausalLM"]), {}, "names LlamaForCausalLM"),
        (lambda f: edit(f, id2label={"0": "a", "1": "b"}), {}, "has 2 labels"),
    ],
)
def test_what_is_no_reward_model_is_refused_before_any_weight_is_read(folder, tmp_path, spoil, options, message):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy)
    with pytest.raises(RewardError, match=message):
        reward_of(str(copy), **options)


def edit(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_a_head_that_is_not_saved_is_not_drawn_at_random(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(RewardError, match=r"lack score\.weight"):
        reward_of(str(copy))(prompts=["Hi"], completions=["x"])


def test_rows_that_the_template_refuses_are_found_before_training(tmp_path):
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    reward = reward_of(save_reward_model(tmp_path, template=refuses))
    problems = reward.check_rows([{"prompt": "Hi"}, {"prompt": CHAT}, {}])
    assert len(problems) == 2
    assert "no system role" in problems[0]
    assert "reads the prompt" in problems[1]


def test_plain_trl_is_told_that_it_cannot_normalise(folder):
    reward = reward_of(folder, normalize=True)
    with pytest.raises(RewardError, match="DomainGRPOTrainer"):
        reward(prompts=["Hi"], completions=["x"], trainer_state=object())
    assert reward(prompts=["Hi"], completions=["x"]) == reward_of(folder)(prompts=["Hi"], completions=["x"])


def test_processes_of_a_machine_take_several_devices_in_turn(folder, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    reward = reward_of(folder, device=["cuda:9", "cpu"])
    assert reward._classifier.model.device == torch.device("cpu")


def test_the_command_scores_a_file(folder, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": "Hi", "completion": text}) + "\n" for text in ("a", "bb")))
    command = ["score", "reward_model", str(source), str(target), "-o", f"model={folder}"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    found = [json.loads(line)["reward"] for line in target.read_text().splitlines()]
    assert found == pytest.approx(reward_of(folder)(prompts=["Hi"] * 2, completions=["a", "bb"]), abs=1e-5)

import random

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from counterpoint.pocket import TASKS
from counterpoint.pocket.tokenizer import ALPHABET, new_tokenizer


@pytest.fixture(scope="module", params=["new", "read back"])
def tokenizer(request, tmp_path_factory):
    made = new_tokenizer()
    if request.param == "new":
        return made
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_it_is_a_real_fast_tokenizer_with_four_different_special_tokens(tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    ids = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    assert len(ids) == 4
    assert len(tokenizer) == len(ALPHABET) + 4 == 100


def test_texts_over_the_alphabet_survive_the_round_trip(tokenizer):
    rng = random.Random(0)
    texts = ["", " ", "  a  ", "do n't , stop .", "a\n\nb ", ALPHABET]
    texts += ["".join(rng.choices(ALPHABET, k=rng.randint(1, 60))) for _ in range(300)]
    texts += [
        task.generate("train", index)[key]
        for task in TASKS.values()
        for index in range(30)
        for key in ("prompt", "answer")
    ]
    for text in texts:
        ids = tokenizer.encode(text)
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_text_in_two_parts_has_the_tokens_of_the_whole(tokenizer):
    assert tokenizer.encode("17+25=") + tokenizer.encode("42") == tokenizer.encode("17+25=42")


def test_unknown_characters_become_the_unknown_token(tokenizer):
    assert tokenizer.encode("aéb\t") == [
        tokenizer.convert_tokens_to_ids("a"),
        tokenizer.unk_token_id,
        tokenizer.convert_tokens_to_ids("b"),
        tokenizer.unk_token_id,
    ]


def test_padding_is_on_the_left_and_disappears_on_decoding(tokenizer):
    batch = tokenizer(["abc", "a"], return_tensors="pt", padding=True)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["input_ids"][1, :2].tolist() == [tokenizer.pad_token_id] * 2
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["abc", "a"]
    assert tokenizer.decode([*tokenizer.encode("42"), tokenizer.eos_token_id], skip_special_tokens=True) == "42"

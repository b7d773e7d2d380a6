"""Rewards ``repetition``, ``copying`` and ``same_answer``."""

import time

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import build_reward

STORY = "The old lamp keeper climbed the stairs once more, although no ship had passed in eleven years."


def scores(name, completions, prompts=None, **options):
    return build_reward(name, **options)(completions=completions, prompts=prompts or ["?"] * len(completions))


def test_repetition_is_the_share_of_different_n_grams():
    # 12 words, 9 n-grams of 4, of which a b c d / b c d a / c d a b / d a b c are different
    assert scores("repetition", ["a b c d " * 3]) == [4 / 9]
    assert scores("repetition", ["a b c d " * 3], n=1) == [4 / 12]
    assert scores("repetition", [STORY, STORY.upper() + " " + STORY]) == pytest.approx([1.0, 19 / 35])
    assert scores("repetition", ["Yes.", "", "   "]) == [1.0, 0.0, 0.0]


def test_repetition_sees_scripts_without_spaces_and_signs():
    assert scores("repetition", ["好的好的好的好的好的"])[0] == pytest.approx(2 / 7)
    assert scores("repetition", ["!" * 100])[0] == pytest.approx(1 / 97)


def test_thoughts_count_where_they_are_asked_for():
    looped = f"<think>{'wait no ' * 50}</think>{STORY}"
    assert scores("repetition", [looped]) == [1.0]
    assert scores("repetition", [looped], thought=True)[0] < 0.4
    assert scores("repetition", ["<think>never ends"]) == [0.0]


def test_copying_is_the_share_of_n_grams_of_the_prompt():
    half = "write a story about a lamp"
    assert scores("copying", [half], [half]) == [0.0]
    # 9 n-grams of which the first 3 are the prompt's
    assert scores("copying", [f"{half} in six further short words"], [half]) == pytest.approx([5 / 8])
    assert scores("copying", [STORY, "A lamp.", ""], [half] * 3) == [1.0, 1.0, 0.0]


def test_copying_reads_every_message_by_itself():
    prompt = [{"role": "system", "content": "one two"}, {"role": "user", "content": "three four five six"}]
    completions = [[{"role": "assistant", "content": text}] for text in ("one two three four", "three four five six")]
    assert scores("copying", completions, [prompt] * 2) == [1.0, 0.0]


def test_same_answer_to_different_prompts():
    assert scores("same_answer", [STORY] * 4, ["p", "q", "r", "s"]) == [0.0] * 4
    other = "Nobody had told the cat about winter, and she took it as an insult to her family."
    assert scores("same_answer", [STORY, other], ["p", "q"]) == [1.0, 1.0]
    # the samples of one prompt may be alike; of the two completions to other prompts one is the same
    assert scores("same_answer", [STORY, STORY, other, STORY], ["p", "p", "q", "r"]) == pytest.approx(
        [0.5, 0.5, 1.0, 1 / 3]
    )
    assert scores("same_answer", ["Yes.", "Yes.", "No."], ["p", "q", "r"]) == [0.5, 0.5, 1.0]
    assert scores("same_answer", ["", STORY], ["p", "q"]) == [0.0, 1.0]


def test_one_prompt_alone_has_nothing_to_compare_with():
    assert scores("same_answer", [STORY, STORY], ["p", "p"]) == [None, None]


def test_a_missing_prompt_is_named():
    for name in ("copying", "same_answer"):
        with pytest.raises(RewardError, match=f"row 0: {name} compares with the prompt"):
            build_reward(name)(completions=["a"])
    with pytest.raises(RewardError, match="n must be a whole number from 1, found 0"):
        build_reward("repetition", n=0)


@pytest.mark.parametrize("name", ["repetition", "copying", "same_answer"])
def test_long_texts_are_no_slower_per_word(name):
    def seconds(words):
        text = " ".join(str(i % 977) for i in range(words))
        started = time.process_time()
        scores(name, [text] * 4, ["p", "q", "r", text])
        return time.process_time() - started

    seconds(1_000)
    assert seconds(80_000) < 40 * max(seconds(8_000), 0.01)


@pytest.mark.parametrize("name", ["repetition", "copying", "same_answer"])
@pytest.mark.parametrize("text", ["\x00\ud800", "((((", "<think>", "</think>", "\n" * 500, "é" * 3000, "?!."])
def test_nonsense_never_raises(name, text):
    assert all(0 <= value <= 1 for value in scores(name, [text, text], ["p", text]))

# ruff: noqa: E501, RUF001 (a table of short cases)
"""Checkers of IFEval and IFBench that were wrong."""

import json
import logging
import random
import threading

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import build_reward

pytest.importorskip("if_verifiable", reason="the extra 'instructions' is not installed")

KEYWORDS = {"keyword1": "pen", "keyword2": "cup", "keyword3": "map", "keyword4": "hat", "keyword5": "sun"}
REST = "cup cup map map map hat hat hat hat hat sun sun sun sun sun sun sun"
STORY = [f"{letter}nn went on." for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
# instruction, its arguments, completion, whether it follows
CASES = [
    ("count:person_names", {"N": 2}, "Emmanuel met Noahs.", False),
    ("count:person_names", {"N": 2}, "Emma met Noah.", True),
    ("count:keywords_multiple", KEYWORDS, f"happen {REST}", False),
    ("count:keywords_multiple", KEYWORDS, f"happen, pen; {REST}", True),
    ("repeat:repeat_span", {"n_start": 0, "n_end": 6, "prompt_to_repeat": "Tell me a story, please."}, "Tell me", True),
    ("repeat:repeat_span", {"n_start": 0, "n_end": 6, "prompt_to_repeat": "Tell me a story, please."}, "Tell me a story", False),
    ("count:pronouns", {"N": 3}, "Whoever said this helps nobody.", True),
    ("count:pronouns", {"N": 3}, "Cats sleep.", False),
    ("ratio:sentence_type", {}, "Great! Super!", False),
    ("ratio:sentence_type", {}, "It rains. It pours. Does it?", True),
    ("words:vowel", {}, "the sheep\nslept here", True),
    ("words:vowel", {}, "a big hot cup", False),
    ("words:vowel", {}, "the sheep\n\nslept here", False),
    ("format:line_indent", {}, "a\n\n\n b\n\n  c", True),
    ("format:line_indent", {}, "a\n b\n b", False),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "at least"}, "Oh! No!", True),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "at least"}, "aaaa bbbb cccc", False),
    ("language:response_language", {"language": "sw"}, "4711", False),
    ("language:response_language", {"language": "en"}, "rain", True),
    ("language:response_language", {"language": "de"}, "The weather is rather fine today, I would say.", False),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"}, "One.\n\n\n\nThen two.", True),
    ("keywords:existence", {"keywords": ["(draft"]}, "The (draft version.", True),
    ("keywords:existence", {"keywords": ["C++"]}, "I like C.", False),
    ("keywords:frequency", {"keyword": "a.b", "frequency": 1, "relation": "at least"}, "acb", False),
    ("keywords:forbidden_words", {"forbidden_words": ["C++"]}, "I use C++ daily.", False),
    ("keywords:forbidden_words", {"forbidden_words": ["C++"]}, "I use C daily.", True),
    ("detectable_format:multiple_sections", {"section_spliter": "Part (", "num_sections": 2}, "Part ( 1\nfoo\nPart ( 2\nbar", True),
    ("detectable_format:multiple_sections", {"section_spliter": "C++", "num_sections": 1}, "C 1\nfoo", False),
    ("detectable_content:postscript", {"postscript_marker": "P.S. ("}, "Text.\nP.S. (more", True),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Text.\nP.P.S more", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b\n---\nend", True),
    ("count:conjunctions", {"small_n": 3}, "and And and, here", False),
    ("count:conjunctions", {"small_n": 3}, "Cats and dogs, but not owls, or bats.", True),
    ("count:unique_word_count", {"N": 3}, "a - b", False),
    ("custom:date_format_list", {}, "1800-00-10, 1801-01-00", False),
    ("custom:date_format_list", {}, "1801-02-29", False),
    ("custom:date_format_list", {}, "1800-01-10, 1801-01-09", True),
    ("format:thesis", {}, "<em></em> text", False),
    ("format:thesis", {}, "<em>Rain is good.</em> It is.", True),
    ("format:sub-bullets", {}, "No bullets at all.", False),
    ("format:sub-bullets", {}, "* one\n - a\n* two\n - b", True),
    ("format:no_bullets_bullets", {}, "One thing. Another.\n\nThird one.\n* a\n* b", True),
    ("format:no_bullets_bullets", {}, "One.\n* a\n* b", False),
    ("words:paragraph_last_first", {}, "Rain, they say, is rain.", True),
    ("words:paragraph_last_first", {}, "Rain is wet.", False),
    ("change_case:english_capital", {}, "GO HOME NOW.", True),
    ("change_case:english_capital", {}, "Go home now.", False),
    ("change_case:english_lowercase", {}, "hello, i am a cat.", True),
    ("change_case:english_lowercase", {}, "das ist ein deutscher satz und nichts anderes.", False),
    ("language:response_language", {"language": "ru"}, "Да", True),
    ("language:response_language", {"language": "ru"}, "Yes", False),
    ("ratio:sentence_words", {}, "Cat. Cat. Cat.", False),
    ("ratio:sentence_words", {}, "cat ran. Cat sat. cat ate.", False),
    ("ratio:sentence_words", {}, "Cats run. Dogs sit. Pigs eat.", True),
    ("ratio:sentence_words", {}, "The cat. A dogs.", False),
    ("format:sub-bullets", {}, "Intro\n* A **bold** one\n  - a\n  - b\n* **Another:**\n  - c", True),
    ("format:sub-bullets", {}, "* early-morning walk\n* late-night walk", False),
    ("format:sub-bullets", {}, "* one\n - a\n* two", False),
    ("format:sub-bullets", {}, "- one\n - a", False),
    ("format:sub-bullets", {}, "*One with **bold**\n -a\n*Two\n -b", True),
    ("custom:sentence_alphabet", {}, " ".join(STORY), True),
    ("custom:sentence_alphabet", {}, " ".join(f'"{sentence}"' for sentence in STORY), True),
    ("custom:sentence_alphabet", {}, " ".join(f"“{sentence[:-1]},” he said." for sentence in STORY), True),
    ("custom:sentence_alphabet", {}, " ".join(f'"{sentence}"' for sentence in STORY[::-1]), False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "*One* word\n* a\n- b", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "*One* word\n* a", False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "-5 degrees\n* a\n* * *\n* **b**", True),
    ("format:quote_unquote", {}, "123...", True),
    ("format:quote_unquote", {}, '"Just a quote."', False),
    ("format:quote_unquote", {}, 'He said "yes". Then more.', True),
    ("words:words_position", {"keyword": "whisper"}, "A whisper is what one calls a whisper here!?", True),
    ("words:words_position", {"keyword": "whisper"}, "Well, Whisper - that is all - whisper (they).", True),
    ("words:words_position", {"keyword": "whisper"}, "A whisper is a whisper!?", False),
    ("words:words_position", {"keyword": "whisper"}, "whisper", False),
    ("words:keywords_specific_position", {"keyword": "target", "n": 2, "m": 3}, "One. Alpha, beta target gamma.", True),
    ("words:keywords_specific_position", {"keyword": "target", "n": 2, "m": 3}, "One. Don't — well-read, Target!", True),
    ("words:keywords_specific_position", {"keyword": "target", "n": 2, "m": 3}, "One. Alpha, target.", False),
    ("words:keywords_specific_position", {"keyword": "target", "n": 3, "m": 1}, "One. Two target.", False),
    ("language:response_language", {"language": "hu"}, "Ez egy magyar nyelvű szöveg az időjárásról.", True),
    ("language:response_language", {"language": "tr"}, "Ez egy magyar nyelvű szöveg az időjárásról.", False),
    ("language:response_language", {"language": "zh-cn"}, "这是一段中文文字，今天天气很好。", True),
    ("language:response_language", {"language": "zh"}, "这是繁體中文，今天天氣很好。", True),
    ("language:response_language", {"language": "zh"}, "これは日本語の文章です。今日は天気がいいです。", False),
]  # fmt: skip


def row(*cases):
    return {"instruction_id_list": [[case[0]] for case in cases], "kwargs": [[case[1]] for case in cases]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[3]}")
def test_check(case):
    assert build_reward("instructions")(completions=[case[2]], **row(case)) == [float(case[3])]


@pytest.mark.parametrize(
    ("id", "arguments", "message"),
    [
        ("keywords:letter_frequency", {"letter": "ab"}, "a letter is one sign"),
        ("language:response_language", {"language": "tlh"}, "no language 'tlh' is known"),
    ],
)
def test_arguments_that_no_completion_can_meet(id, arguments, message):
    (problem,) = build_reward("instructions").check_rows([{"instruction_id_list": [id], "kwargs": [arguments]}])
    assert f"'kwargs' of {id} cannot be used ({message}" in problem


def test_arguments_as_json_texts():
    reward = build_reward("instructions")
    arguments = {"keywords": ["rain"]}
    for given in (json.dumps([arguments]), [json.dumps(arguments)]):
        assert reward(completions=["rain"], instruction_id_list=[["keywords:existence"]], kwargs=[given]) == [1.0]
    with pytest.raises(RewardError, match="must hold one mapping"):
        reward(completions=["rain"], instruction_id_list=[["keywords:existence"]], kwargs=["{not json"])


def test_threads_leave_the_process_as_it_was():
    reward = build_reward("instructions")
    before = logging.root.manager.disable, random.getstate()
    values = []

    def work():
        values.extend(reward(completions=[case[2] for case in CASES], **row(*CASES)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values == [float(case[3]) for case in CASES] * 4
    assert (logging.root.manager.disable, random.getstate()) == before

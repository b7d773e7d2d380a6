# ruff: noqa: E501 (a table of short cases)
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
]  # fmt: skip


def row(*cases):
    return {"instruction_id_list": [[case[0]] for case in cases], "kwargs": [[case[1]] for case in cases]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[3]}")
def test_check(case):
    assert build_reward("instructions")(completions=[case[2]], **row(case)) == [float(case[3])]


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

"""Where in a completion the answer stands."""

import re

_THOUGHT = r"(?:\w+:)?(?:think|thinking|thoughts?|reasoning)"
_ATTRIBUTES = r"(?:\s+[\w:-]+=[^<>]*)?"
_OPENS = re.compile(
    rf"<\s*{_THOUGHT}{_ATTRIBUTES}\s*>|\[think\]|◁think▷|<\|begin_of_thought\|>|<\|channel\|>(?:analysis|commentary)",
    re.IGNORECASE,
)
# The last two are gpt-oss's, the very last as it reads when special tokens were left out in decoding.
_CLOSES = re.compile(
    rf"<\s*/\s*{_THOUGHT}\s*>|\[/think\]|◁/think▷|<\|end_of_thought\|>"
    r"|<\|channel\|>final(?:\s*<\|constrain\|>\w+)?<\|message\|>|\Aanalysis(?s:.*)assistantfinal",
    re.IGNORECASE,
)
# Words that also stand in programs and markup: thoughts only where a reply begins.
_NOTES = re.compile(
    rf"(?:\s*<(reason|reflection|scratchpad|analysis){_ATTRIBUTES}\s*>.*?(?:</\1\s*>|\Z))+", re.DOTALL | re.IGNORECASE
)
_ANSWER_TAG = re.compile(r"<(answer|response)>(.*?)(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
# Likewise: answers only where a reply ends.
_LAST_TAG = re.compile(r"<(final|final_answer|solution|choice)>((?:(?!<\1>).)*)</\1>\s*\Z", re.DOTALL | re.IGNORECASE)
_LOST_END = re.compile(r"(?:</(?:answer|response)>|<\|(?:return|end)\|>)\s*\Z", re.IGNORECASE)


def final_answer(text: str, closed_thought: bool = False) -> str:
    """The part of a completion that answers: after the thought, and inside the last answer tag where there is one.

    A thought ends at the last ``</think>`` (or what other models write for it), also where the prompt holds its
    beginning. An unfinished one (``<think>`` without its end) answers nothing. ``<analysis>`` and the like are thoughts
    where the reply begins, ``<final>`` and the like answer tags where it ends.

    Arguments:
        text: The completion.
        closed_thought: Whether a completion without ``</think>`` answers nothing.
    """
    return answer_region(text, closed_thought).strip()


def answer_region(text: str, closed_thought: bool = False) -> str:
    """The same with the space around it. Tags inside a fenced block are the block's own text."""
    ends = [match.end() for match in _CLOSES.finditer(text)]
    if notes := _NOTES.match(text, ends[-1] if ends else 0):
        ends.append(notes.end())
    tail = text[ends[-1] :] if ends else text
    if _OPENS.search(tail) or (closed_thought and not ends):
        return ""
    found = [*_ANSWER_TAG.finditer(tail), *_LAST_TAG.finditer(tail)]
    tags = [tag for tag in found if tail.count("```", 0, tag.start()) % 2 == 0]
    return tags[-1][2] if tags else _LOST_END.sub("", tail) if ends else tail

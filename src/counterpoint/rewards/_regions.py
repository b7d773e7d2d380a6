"""Where in a completion the answer stands."""

import re

_ANSWER_TAG = re.compile(r"<(answer|response)>(.*?)(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)


def final_answer(text: str, closed_thought: bool = False) -> str:
    """The part of a completion that answers: after the thought, and inside the last answer tag where there is one.

    A thought ends at the last ``</think>``, also where the prompt holds its beginning. An unfinished one (``<think>``
    without its end) answers nothing.

    Arguments:
        text: The completion.
        closed_thought: Whether a completion without ``</think>`` answers nothing.
    """
    return answer_region(text, closed_thought).strip()


def answer_region(text: str, closed_thought: bool = False) -> str:
    """The same with the space around it. Tags inside a fenced block are the block's own text."""
    _, end, tail = text.rpartition("</think>")
    if "<think>" in tail or (closed_thought and not end):
        return ""
    tags = [tag for tag in _ANSWER_TAG.finditer(tail) if tail.count("```", 0, tag.start()) % 2 == 0]
    return tags[-1][2] if tags else tail

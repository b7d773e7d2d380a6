"""Where in a completion the answer stands."""

import re

_ANSWER_TAG = re.compile(r"<(answer|response)>(.*?)(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)


def final_answer(text: str) -> str:
    """The part of a completion that answers: after the thought, and inside the last answer tag where there is one.

    An unfinished thought (``<think>`` without its end) answers nothing.
    """
    head, end, tail = text.rpartition("</think>")
    if end:
        text = tail
    elif "<think>" in head + tail:
        return ""
    tags = _ANSWER_TAG.findall(text)
    return (tags[-1][1] if tags else text).strip()

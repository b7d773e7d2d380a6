"""Where a stop string ends a completion, in ids that any engine has sampled."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any


def stop_length(tokenizer: Any, ids: Sequence[int], stop: Sequence[str]) -> int | None:
    """The number of ids up to the first one that completes a string of ``stop``, itself included; None without any."""

    def ended(length: int) -> bool:
        text = tokenizer.decode(ids[:length], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(string in text for string in stop)

    if not stop or not ended(len(ids)):
        return None
    return 1 + bisect_left(range(1, len(ids)), True, key=ended)  # a longer text still has what a shorter one has

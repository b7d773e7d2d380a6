"""Loading the IFEval and IFBench checkers of ``if-verifiable``, quietly and corrected, without side effects.

Importing that package tries to download NLTK data and prints when it cannot. Training must neither reach for the
network nor depend on whether it answers, so during the import ``nltk.download`` does nothing; checks that need data
which is not there are refused by name instead (``missing_data``).
"""

import contextlib
import functools
import logging
import random
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from counterpoint.errors import MissingExtraError
from counterpoint.rewards._corrected import corrected

# Which NLTK data each check reads; all other checks need none.
NLTK_DATA: dict[str, tuple[str, ...]] = {
    "length_constraints:number_sentences": ("tokenizers/punkt_tab",),
    "change_case:capital_word_frequency": ("tokenizers/punkt_tab",),
    "ratio:stop_words": ("corpora/stopwords",),
    "words:start_verb": ("tokenizers/punkt_tab", "taggers/averaged_perceptron_tagger_eng"),
    "format:title_case": ("tokenizers/punkt_tab",),
}

_one_at_a_time = threading.RLock()


@functools.cache
def load_checkers() -> dict[str, Any]:
    """Instruction id -> checker class, of IFEval and IFBench together. Raises ``MissingExtraError``."""
    try:
        import langdetect
        import nltk
    except ImportError:
        raise MissingExtraError.for_extra("Reward 'instructions'", "instructions") from None

    download = nltk.download
    nltk.download = lambda *_args, **_kwargs: False
    try:
        with warnings.catch_warnings(), isolated():
            warnings.simplefilter("ignore")
            from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT as IFBENCH
            from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT as IFEVAL
    except ImportError:
        raise MissingExtraError.for_extra("Reward 'instructions'", "instructions") from None
    finally:
        nltk.download = download
    # Language detection draws random numbers of its own; a fixed seed makes it a function of the text.
    langdetect.DetectorFactory.seed = 0
    return corrected({**IFEVAL, **IFBENCH})


def build_checker(checkers: Mapping[str, Any], id: str, kwargs: Mapping[str, Any], prompt: str | None) -> Any:
    """The checker of an instruction with its arguments. Raises whatever the checker does for bad ones."""
    checker = checkers[id](id)
    checker.build_description(**kwargs)
    if "prompt" in (checker.get_instruction_args() or {}) and isinstance(prompt, str):
        checker.build_description(prompt=prompt)
    return checker


@functools.cache
def missing_data(instruction_id: str) -> tuple[str, ...]:
    """The NLTK data that a check needs and that is not installed."""
    import nltk

    missing = []
    for resource in NLTK_DATA.get(instruction_id, ()):
        try:
            nltk.data.find(resource)
        except LookupError:
            missing.append(resource.rpartition("/")[2])
    return tuple(missing)


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """A fixed state of Python's global generator and no log lines inside, the caller's own state of both afterwards.

    The checkers draw from the global generator, which would make scores depend on what ran before, and disturb others;
    and they log whole completions as errors. Both states are the process's, so one thread at a time is inside.
    """
    with _one_at_a_time:
        state, threshold = random.getstate(), logging.root.manager.disable
        random.seed(0)
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(threshold)
            random.setstate(state)

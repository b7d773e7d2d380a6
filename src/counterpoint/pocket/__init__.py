"""The pocket test bed: a two-million-parameter model and four toy domains that it half masters.

Importing this package costs nothing: no torch, no transformers.

* ``TASKS``: the domains ``math``, ``code``, ``qa`` and ``writing``, each with prompts, gold answers and a reward.
* ``model_path()``: the folder of the shipped base model and tokenizer, for ``from_pretrained``.

``tools/build_pocket.py`` of the repository makes that base from nothing.
"""

from pathlib import Path

from counterpoint.pocket.tasks import TASKS, Task

__all__ = ["TASKS", "Task", "model_path"]


def model_path() -> Path:
    """The folder of the shipped base model and its tokenizer."""
    return Path(__file__).parent / "base"

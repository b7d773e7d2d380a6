"""How long work tells how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""``(what, done, total)``, called as work goes on."""


def within(where: str, on_progress: Progress) -> Progress:
    """Progress of a part of some work, told as ``WHERE: what``."""
    return lambda what, done, total: on_progress(f"{where}: {what}", done, total)


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""

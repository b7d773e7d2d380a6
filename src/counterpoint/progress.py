"""How long work tells how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""``(what, done, total)``, called as work goes on."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""

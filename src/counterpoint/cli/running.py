"""Moved to ``_console``; this name goes when nothing imports it any more."""

from counterpoint.cli._console import one_rank_speaks, quiet_libraries

__all__ = ["one_rank_speaks", "quiet_libraries"]

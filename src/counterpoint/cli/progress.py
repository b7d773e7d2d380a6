"""Moved to ``_console``; this name goes when nothing imports it any more."""

from counterpoint.cli._console import ConsoleReporter

__all__ = ["ConsoleReporter"]

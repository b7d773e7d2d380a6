"""Moved to ``_console``; this name goes when nothing imports it any more."""

from counterpoint.cli._console import load, setting_findings

__all__ = ["load", "setting_findings"]

"""Rollback: part of an edit undone without training; ``counterpoint.recovery.rollback`` is the entry."""

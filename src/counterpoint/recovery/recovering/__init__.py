"""Recover: what fell in a run, what to try, and trying it; ``counterpoint.recovery.recover`` is the entry."""

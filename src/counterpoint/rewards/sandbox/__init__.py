"""Runs Python that nobody trusts, and says which tests it passes.

    sandbox = Sandbox()
    verdict = sandbox.run(Program(["def double(x):\\n    return 2 * x"], tests=("assert double(2) == 4",)))
    verdict.passed          # (True,)

What it guarantees, and what it does not, is in ``docs/security.md``.
"""

from counterpoint.rewards.sandbox._client import Program, Sandbox, Verdict
from counterpoint.rewards.sandbox._frames import MAX_FRAME
from counterpoint.rewards.sandbox._limits import Limits

__all__ = ["MAX_FRAME", "Limits", "Program", "Sandbox", "Verdict"]

"""The command line in this process: what ``python -m counterpoint`` does, without the start of another Python."""

import io
import os
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from counterpoint.cli.app import main


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def counterpoint(*arguments):
    """``counterpoint ARGUMENTS``, messages for mistakes and exit status included; the environment is left as it was."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    called = ["counterpoint", *map(str, arguments)]
    with patch.object(sys, "argv", called), patch.dict(os.environ), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                status = end.code or 0
    return Done(status, out.getvalue(), err.getvalue())

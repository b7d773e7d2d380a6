"""The command line without the start of another Python: in this process, or in one that is forked from a server."""

import gc
import io
import os
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch

from counterpoint.cli.app import main
from ranks_helper import forking


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def counterpoint(*arguments):
    """``counterpoint ARGUMENTS`` here, messages for mistakes and exit status included; the environment stays."""
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


class Command:
    """``counterpoint ARGUMENTS`` in a process of its own, for what is killed or must begin with a clean environment."""

    def __init__(self, *arguments, output, folder=".", environment=()):
        self._output, more = output, {"PYTHONWARNINGS": "ignore"} | dict(environment)
        self.process = forking().Process(target=_run, args=([*map(str, arguments)], str(output), str(folder), more))
        self.process.start()
        self.pid = self.process.pid

    def wait(self, timeout=240):
        """Exit status, below 0 for a signal, and all that was written."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode, self._output.read_text()


def _run(arguments, output, folder, environment):
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:  # torch, which the server imported, read it before it was set
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    os.chdir(folder)
    with Path(output).open("wb", 0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
    sys.argv = ["counterpoint", *arguments]
    warnings.simplefilter("ignore")
    gc.freeze()  # what the server imported is no garbage
    main()

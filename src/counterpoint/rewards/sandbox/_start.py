"""Starts an interpreter that inherits nothing of this process but one socket, as its standard input."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCE = str(Path(__file__).resolve().parents[3])
"""The folder of the package; an interpreter without site-packages finds it there."""


def start_interpreter(
    flags: Sequence[str], code: str, argument: str, environment: Mapping[str, str], quiet: bool
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A process that runs ``code``, and our end of the socket to it. Raises ``OSError`` where none can be started.

    Arguments:
        flags: Of the interpreter.
        code: What it runs.
        argument: ``sys.argv[1]``; empty for none.
        environment: All that it has of one, beside fixed hashes, UTF-8, and where its libraries are.
        quiet: Whether its standard error goes nowhere, as its standard output does.
    """
    fixed = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
    # Some interpreters do not start without it.
    libraries = {key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ}
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, *flags, "-P", "-B", "-c", code, *([argument] if argument else [])],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL if quiet else None,
                env=fixed | libraries | dict(environment),
                cwd="/",
            )
        except OSError:
            ours.close()
            raise
    return process, ours

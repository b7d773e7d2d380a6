"""One job in a process of its own, command after command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from counterpoint.disk import disk_errors
from counterpoint.masking import masked_command
from counterpoint.study.commands import commands_of
from counterpoint.study.folder import StudyFolder
from counterpoint.study.jobs import Job

PROGRAM = (sys.executable, "-m", "counterpoint")
LONGEST_REASON = 400


class Child:
    """Runs the commands of ``job`` that are not done yet, one process after another.

    Attributes:
        seconds: wall time so far.
        reason: why the job failed; empty while it did not.
    """

    def __init__(self, job: Job, folder: StudyFolder, threads: int) -> None:
        self.job, self.folder, self.threads = job, folder, threads
        self.reason = ""
        self._commands = commands_of(job, folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = time.monotonic()
        self._log_start = 0

    @property
    def seconds(self) -> float:
        """Wall time since the job began."""
        return time.monotonic() - self._started

    def poll(self) -> bool:
        """Starts the next command if none is running; whether the job has ended."""
        if self._process is not None:
            status = self._process.poll()
            if status is None:
                return False
            self._process = None
            if status != 0:
                self.reason = self._why(status)
                return True
            if not self._commands.pop(0).is_done():
                self.reason = f"ended without its result; see {self.folder.log(self.job.id)}"
                return True
        while self._commands and self._commands[0].is_done():
            self._commands.pop(0)
        if not self._commands:
            return True
        self._process = self._launch(self._commands[0].arguments())
        return False

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if one is running."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self) -> None:
        """Waits for the running process to end."""
        if self._process is not None:
            self._process.wait()

    def _launch(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        log = self.folder.log(self.job.id)
        command = [*PROGRAM, *arguments]
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                output.write(f"$ counterpoint {' '.join(masked_command(arguments))}\n".encode())
                output.flush()
                self._log_start = output.tell()
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"OMP_NUM_THREADS": str(self.threads), "COLUMNS": "120"},
                    pass_fds=(self.folder.lock_handle,),
                    start_new_session=True,  # the terminal's Ctrl-C is for the study, which passes it on
                )

    def _why(self, status: int) -> str:
        return reason_of(self.folder.log(self.job.id), self._log_start, status)


def reason_of(log: Path, start: int, status: int) -> str:
    """Why a command failed: its own error message, else its last line, else its exit status.

    Args:
        log: what it printed.
        start: byte of the log at which it began.
        status: its exit status.
    """
    if status < 0:
        return f"ended by signal {-status} ({signal.Signals(-status).name})"
    text = log.read_bytes()[start:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [index for index, line in enumerate(lines) if line.startswith("Error: ")]
    told = " ".join(lines[errors[-1] :]).removeprefix("Error: ") if errors else (lines or [f"exit status {status}"])[-1]
    return told if len(told) <= LONGEST_REASON else f"{told[:LONGEST_REASON]}..."

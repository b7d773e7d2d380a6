"""One step of one job of a study, in a process of its own: ``python -m counterpoint.study.child FOLDER JOB STEP``."""

import sys
from pathlib import Path

from counterpoint.errors import CounterpointError, RunError
from counterpoint.masking import MaskedStream
from counterpoint.study.jobs import StudyFolder
from counterpoint.study.steps import evaluate, make

INTERRUPTED = 130


def main(path: str, job: str, step: str) -> None:
    """Does one step of one job; a problem that a user can mend is one line and exit status 1."""
    folder = StudyFolder(Path(path))
    try:
        record = folder.record(job)
        if record is None:
            raise RunError(f"{path}: there is no job {job!r}.")
        {"make": make, "evaluate": evaluate}[step](record, folder)
    except CounterpointError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        print(f"Stopped. {stop}".rstrip(), file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    # Not undone at the end, so that Python's own report of a bug is masked too.
    sys.stdout, sys.stderr = MaskedStream(sys.stdout), MaskedStream(sys.stderr)
    main(*sys.argv[1:])

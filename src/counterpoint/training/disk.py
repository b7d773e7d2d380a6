"""A full or unwritable disk, told in one sentence instead of a traceback."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from counterpoint.errors import RunError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turns the errors by which files cannot be written into a ``RunError`` that says how to go on.

    ``torch.save`` and safetensors raise errors of their own for a full disk; they are known by their wording.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise _explained(path, error) from error
    except SafetensorError as error:
        if "I/O error" not in str(error):
            raise
        raise _explained(path, error) from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error):
            raise
        raise _explained(path, error) from error


def _explained(path: Path, error: Exception) -> RunError:
    reason = str(error).splitlines()[0]
    return RunError(
        f"{path}: a file could not be written ({reason}). Earlier checkpoints are whole. Make room or make the folder "
        f"writable, then continue with: counterpoint train --resume {path}"
    )

"""``python -m counterpoint``: the same as the command ``counterpoint``."""

import sys
from pathlib import Path


def _run() -> None:
    # Python puts the current folder first, where a file may lie that has the name of a module of Python's own.
    if sys.path[:1] == [str(Path.cwd())] and not sys.flags.safe_path:
        sys.path.pop(0)
    from counterpoint.cli.app import main

    main()


if __name__ == "__main__":
    _run()

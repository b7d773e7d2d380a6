"""A page that is made again when the files of its run have changed, at most as often as the machine can spare."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from counterpoint.errors import RunError
from counterpoint.report._page import without_scripts
from counterpoint.report._read import RECOVERY_FOLDERS, RUN_FILES

PAUSE_SECONDS = 2.0
"""The shortest time between two makings of the page."""

BUSY_SHARE = 0.1
"""The largest share of one core that may go into making the page: it runs beside a training."""

WATCHED = (*RUN_FILES, "environment.json", "samples.jsonl", "grams.jsonl", "study.json")

Make = Callable[[str], str]


@dataclass(frozen=True)
class Shown:
    """One state of the page: what to call it, the whole, and the part that changes."""

    version: str
    page: str
    content: str
    problem: str | None = None


class LivePage:
    """Holds the newest page of ``paths``; ``make`` makes it for a version.

    Whoever asks makes it anew, if need be: where nobody looks, nothing is done. Safe to be asked by several threads.
    """

    def __init__(self, paths: Sequence[Path], make: Make) -> None:
        self._paths = [Path(path) for path in paths]
        self._make = make
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._shown = self._made(self._version())

    def now(self) -> Shown:
        """The page as the files are, or as they were a moment ago."""
        with self._lock:
            if time.monotonic() >= self._not_before:
                version = self._version()
                if version != self._shown.version or self._shown.problem:
                    self._shown = self._made_or_kept(version)
            return self._shown

    def _made_or_kept(self, version: str) -> Shown:
        """A page that cannot be made leaves the old one standing, with the reason."""
        try:
            return self._made(version)
        except RunError as error:
            self._not_before = time.monotonic() + PAUSE_SECONDS
            shown = self._shown
            return Shown(shown.version, shown.page, shown.content, problem=str(error))

    def _made(self, version: str) -> Shown:
        begin = time.thread_time()  # of the processor: on a busy machine the clock on the wall says little about it
        page = self._make(version)
        shown = Shown(version, page, without_scripts(page))
        spent = time.thread_time() - begin
        self._not_before = time.monotonic() + max(PAUSE_SECONDS, spent * (1 / BUSY_SHARE - 1))
        return shown

    def _version(self) -> str:
        """Changes with the size or the time of any file that the page is made from."""
        return hashlib.sha256(repr(list(self._states())).encode()).hexdigest()[:16]

    def _states(self) -> Iterator[tuple[str, int, int]]:
        for folder in self._paths:
            listed = [folder / name for name in WATCHED]
            found = [
                path for name in ("diagnosis", *RECOVERY_FOLDERS) for path in sorted(folder.glob(f"{name}/*.json"))
            ]
            for path in (*listed, *found):
                try:
                    state = path.stat()
                except OSError:
                    continue  # not there yet, or just being replaced
                yield str(path), state.st_mtime_ns, state.st_size

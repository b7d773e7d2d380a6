"""Ctrl-C or SIGTERM ends training at the end of a step, with a checkpoint; Ctrl-C pressed twice ends it at once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """A context in which SIGTERM and the first SIGINT are only remembered.

    A launcher that is stopped with Ctrl-C sends its ranks SIGTERM besides the terminal's SIGINT, so only a second
    SIGINT means that the user cannot wait. Outside the main thread nothing hears signals; only ``request`` works there.

    Args:
        on_request: called once, when the first signal arrives.
    """

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        self.requested = False
        self._pressed = False
        self._on_request = on_request
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if _hears_signals():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._previous[name] = signal.signal(name, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)
        self._previous = {}

    def request(self) -> None:
        """Remembers that training is to end, as a signal would."""
        if not self.requested:
            self.requested = True
            self._on_request()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._pressed:
                raise KeyboardInterrupt
            self._pressed = True
        self.request()


def _hears_signals() -> bool:
    """Python lets only the main thread handle signals."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Lets SIGTERM end what stands outside of training steps, an evaluation say, in order: by a KeyboardInterrupt.

    A second one is ignored. Outside the main thread nothing happens.
    """
    if not _hears_signals():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)

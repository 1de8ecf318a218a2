"""Deferred handling of Ctrl-C and SIGTERM, so that work can stop after a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Handler that defers the first interrupt; a second one ends the work at once.

    Attributes:
        deferring: Whether the first interrupt is deferred, because the work polls ``asked``.
        asked: Whether an interrupt is pending.
    """

    def __init__(self) -> None:
        self.deferring = self.asked = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Handle interrupts while the block lasts.

        Raises:
            KeyboardInterrupt: At once, or at the end of the block if an interrupt is still pending.
        """
        before = {}
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in _SIGNALS}
        # An ignored signal, as under nohup, stays ignored; None is a handler not set by Python.
        before = {n: old for n, old in before.items() if old not in (signal.SIG_IGN, None)}
        for number in before:
            signal.signal(number, self._come)
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)
        if self.asked:
            raise KeyboardInterrupt

    def no_longer_wait(self) -> None:
        """Stop deferring: from now on an interrupt ends the work at once.

        Raises:
            KeyboardInterrupt: If an interrupt is pending.
        """
        self.deferring = False
        if self.asked:
            raise KeyboardInterrupt

    def _come(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if not self.deferring or self.asked:
            raise KeyboardInterrupt
        self.asked = True

"""Ctrl-C and SIGTERM for work that would like to reach a good place to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The first interrupt waits while someone asks for it; any other one ends the work at once.

    Attributes:
        deferring: Whether someone asks now and then.
        asked: Whether an interrupt waits.
    """

    def __init__(self) -> None:
        self.deferring = self.asked = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look out for interrupts while the block lasts.

        Raises:
            KeyboardInterrupt: At once or, where one waits and nobody has asked, at the end.
        """
        before = {}
        # Elsewhere Python does not let signals be handled, and they are not ours.
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in _SIGNALS}
        # One that is ignored, as under nohup, stays so; None is a handler that is not Python's.
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
        """From here on an interrupt ends the work at once.

        Raises:
            KeyboardInterrupt: If one waits.
        """
        self.deferring = False
        if self.asked:
            raise KeyboardInterrupt

    def _come(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if not self.deferring or self.asked:
            raise KeyboardInterrupt
        self.asked = True

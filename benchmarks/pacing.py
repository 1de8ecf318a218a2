"""Programs that run only while their steps are measured, so that several alternate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from robustkd.core.types import Batch, Split
from robustkd.data import InMemory

Item = TypeVar("Item")
Pace = Callable[[], None]


class _Ended(BaseException):
    """Ends the thread of a program, wherever it is."""


class Paced:
    """A program in a thread of its own that runs only while its steps are measured.

    Args:
        program: Function that runs steps and calls its argument before each of them.
    """

    def __init__(self, program: Callable[[Pace], None]) -> None:
        self._program, self._left, self._error = program, 0, None
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._wait()

    def advance(self, steps: int) -> float:
        """Run some steps, and return the processor time of one of them in seconds."""
        self._left = steps
        started = time.process_time()
        self._go.release()
        self._wait()
        return (time.process_time() - started) / steps

    def end(self) -> None:
        """End the program."""
        self._ended = True
        self._go.release()
        self._thread.join()

    def _wait(self) -> None:
        self._stopped.acquire()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        torch.set_num_threads(1)
        try:
            self._program(self._pace)
            self._error = RuntimeError("the program has no more steps")
        except _Ended:
            pass
        except BaseException as error:
            self._error = error
        self._stopped.release()

    def _pace(self) -> None:
        if self._left == 0:
            self._stopped.release()
            self._go.acquire()
            if self._ended:
                raise _Ended
        self._left -= 1


def paced(items: Iterable[Item], pace: Pace) -> Iterator[Item]:
    """Yield items, each after ``pace`` was called."""
    source = iter(items)
    while True:
        pace()
        try:
            item = next(source)
        except StopIteration:
            return
        yield item


class PacedSource:
    """A data source whose shuffled training batches are steps of a program."""

    def __init__(self, source: InMemory, pace: Pace) -> None:
        self._source, self._pace = source, pace
        self.name, self.classes, self.image_shape = source.name, source.classes, source.image_shape

    def size(self, split: Split) -> int:
        """Return the number of images of a split."""
        return self._source.size(split)

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """Iterate over a split, as :meth:`robustkd.core.types.DataSource.batches` describes."""
        found = self._source.batches(
            split, batch_size=batch_size, device=device, shuffle=shuffle, augment=augment
        )
        return found if augment is None else paced(found, self._pace)

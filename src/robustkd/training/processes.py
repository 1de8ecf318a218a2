"""Several processes that train one student, as torchrun starts them.

Each process has the same networks and draws the same random numbers, but computes the gradients of
its own part of every batch; the sums over all processes are applied everywhere. So the student is
that of one process, up to the order in which numbers are added up.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from types import FrameType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from robustkd.core.errors import TrainingError
from robustkd.core.launch import launched

_PATIENCE = timedelta(days=1)
"""Longest wait for the first process, which measures the teacher before the training."""
_LAST_SECONDS = 20

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them.

    All methods have to be called by all processes, in the same order.

    Attributes:
        rank: Number of this process, from 0.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def add_up(self, values: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.count > 1:
            with _reported():
                torch.distributed.all_reduce(values)

    def gather(self, values: Tensor) -> Tensor:
        """Return the tensors of all processes, which have one shape, in a first dimension."""
        if self.count == 1:
            return values[None]
        with _reported():
            found = [torch.empty_like(values) for _ in range(self.count)]
            torch.distributed.all_gather(found, values.contiguous())
        return torch.stack(found)

    def from_first(self, compute: Callable[[], T]) -> T:
        """Return what the first process computes; the others wait for it and compute nothing."""
        if self.count == 1:
            return compute()
        held = [compute() if self.first else None]
        with _reported():
            torch.distributed.broadcast_object_list(held, src=0)
        return held[0]  # type: ignore[return-value]  # the value of the first process

    @torch.no_grad()
    def same(self, modules: Iterable[nn.Module | None]) -> None:
        """Replace parameters, buffers and extra states of modules by those of the first process."""
        if self.count == 1:
            return
        for module in modules:
            if module is None:
                continue
            here = module.state_dict()
            known = {name: value.cpu() for name, value in here.items()} if self.first else None
            state = self.from_first(lambda known=known: known)  # type: ignore[misc]
            module.load_state_dict(state)


ONE = Processes()
"""A training in one process."""


class Portion(NamedTuple):
    """The part of a batch that a process computes.

    Attributes:
        places: Places of its images in the batch, in increasing order; None for the whole batch.
        total: Number of images in the batch.
    """

    places: Tensor | None
    total: int

    def before(self, place: int) -> int:
        """Return how many of the images come before a place of the batch."""
        if self.places is None:
            return min(place, self.total)
        return int((self.places < place).sum())

    def own(self, drawn: Tensor) -> Tensor:
        """Return the rows that belong to this part, of rows for the first images of the batch."""
        return drawn if self.places is None else drawn[self.places[: self.before(len(drawn))]]

    def between(self, start: int, end: int) -> Portion:
        """Return the portion of a range of the batch, as if it were a batch of its own."""
        if self.places is None:
            return Portion(None, end - start)
        return Portion(self.places[self.before(start) : self.before(end)] - start, end - start)

    def split(self, parts: int) -> list[tuple[slice, Portion]]:
        """Divide the batch into parts as ``torch.tensor_split`` does.

        Returns:
            For each part, the rows among the images of this portion, and the portion of the part.
        """
        size, more = divmod(self.total, parts)
        ends = [k * size + min(k, more) for k in range(parts + 1)]
        return [
            (slice(self.before(start), self.before(end)), self.between(start, end))
            for start, end in pairwise(ends)
        ]


def start() -> Processes:
    """Join the processes that torchrun has started; one process if it was not used.

    The process uses the device with its local number.
    """
    if not launched().several:
        return ONE
    if not torch.distributed.is_initialized():
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        on_cpu = accelerator is None or "ACCELERATE_USE_CPU" in os.environ
        if not on_cpu:
            torch.accelerator.set_device_index(launched().local)
        # PyTorch's threads have to end before the process does, or they may abort it.
        atexit.register(_leave)
        with _reported():
            torch.distributed.init_process_group("gloo" if on_cpu else None, timeout=_PATIENCE)
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def following() -> Iterator[None]:
    """Leave the answer to Ctrl-C and SIGTERM to the first process while the block lasts.

    The first process finishes its step, writes a checkpoint and stops, whereupon the next exchange
    with it fails in the others. If that does not happen soon, this process is ended.

    Raises:
        KeyboardInterrupt: If the processes have stopped after such a signal.
    """
    asked = False

    def come(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        del number, frame
        asked = True
        signal.alarm(_LAST_SECONDS)

    before = {number: signal.signal(number, come) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except TrainingError:
        if asked:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _reported() -> Iterator[None]:
    """Turn errors of the exchange between processes into a message of one line.

    Raises:
        TrainingError: If another process has stopped, or cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:  # of which PyTorch's errors of an exchange are kinds
        raise TrainingError(
            "the processes of this run cannot exchange data: one of them has stopped, and its own "
            f"message says why, or it cannot be reached ({_brief(error)})"
        ) from error


def _brief(error: RuntimeError) -> str:
    return " ".join(str(error).split())[:120]

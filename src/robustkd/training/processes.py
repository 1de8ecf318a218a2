"""Several processes that train one student, as torchrun starts them.

Each process has the same networks and draws the same random numbers, but computes the gradients of
its own part of every batch; the sums over all processes are applied everywhere. So the student is
that of one process, up to the order in which numbers are added up.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from robustkd.core.devices import default_device
from robustkd.core.errors import TrainingError, UsageError
from robustkd.core.launch import Launched, launched

_PATIENCE = timedelta(days=1)
"""Longest wait for the first process, which measures the teacher before the training."""

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

    def one_first(self, compute: Callable[[], T]) -> T:
        """Return what a function computes here, after the first process of this machine has run it.

        For a function that downloads files.
        """
        if self.count == 1 or launched().local == 0:
            found = compute()
            self.add_up(torch.zeros(1))
            return found
        self.add_up(torch.zeros(1))
        return compute()

    def check_same(self, values: Mapping[str, object]) -> None:
        """Check that the values of all processes are the same.

        Args:
            values: JSON values by name, with the same names in all processes.

        Raises:
            UsageError: In all processes, if one is not; the message names the first.
        """
        if self.count == 1:
            return
        texts = [json.dumps(value, sort_keys=True, default=str) for value in values.values()]
        digests = [hashlib.sha256(text.encode()).digest()[:8] for text in texts]
        found = self.gather(torch.tensor([int.from_bytes(d, "big", signed=True) for d in digests]))
        for name, column in zip(values, found.T, strict=True):
            if not bool((column == column[0]).all()):
                raise UsageError(
                    f"the processes of this run differ in their {name}; expected the same in all: "
                    "start the same command with the same files and versions on each machine"
                )

    @torch.no_grad()
    def same(self, modules: Iterable[nn.Module | None]) -> None:
        """Replace parameters, buffers and extra states of modules by those of the first process."""
        if self.count == 1:
            return
        for module in modules:
            if module is None:
                continue
            here = module.state_dict()
            known = {name: _on_cpu(value) for name, value in here.items()} if self.first else None
            state = self.from_first(lambda known=known: known)  # type: ignore[misc]
            module.load_state_dict(state)


def _on_cpu(value: object) -> object:
    """Return a tensor on the CPU, and an extra state of another type as it is."""
    return value.cpu() if isinstance(value, Tensor) else value


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
        device = default_device()
        on_cpu = device.type == "cpu"
        if not on_cpu:
            _take_device(device, launched())
        # PyTorch's threads have to end before the process does, or they may abort it.
        atexit.register(_leave)
        with _reported():
            torch.distributed.init_process_group("gloo" if on_cpu else None, timeout=_PATIENCE)
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())


def _take_device(device: torch.device, launch: Launched) -> None:
    """Use the device with the local number of this process.

    Raises:
        UsageError: If there are too few devices, or their kind does not serve several processes.
    """
    count = torch.accelerator.device_count()
    if device.type == "mps" or count < launch.here:
        raise UsageError(
            f"{launch.here} processes on this machine have {count} devices of kind {device.type}; "
            "expected one for each: start fewer processes, or give --device cpu"
        )
    torch.accelerator.set_device_index(launch.local)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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
    sentence = re.sub(r"^\[[^]]*\]\s*", "", " ".join(str(error).split())).partition(". ")[0]
    return sentence[:120]

"""Decoding with worker processes; the result does not depend on their number.

Nothing in this module is random: order and augmentation are drawn in the main process, and workers
only decode.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Int, Int32, Int64, UInt8
from torch.utils.data import DataLoader, Dataset, Sampler

from robustkd.core.errors import InputError
from robustkd.core.surroundings import safe_children
from robustkd.core.types import Split
from robustkd.data.images.decode import Channels, UndecodableError, decode
from robustkd.data.images.listing import Encoded

Rows = Int[np.ndarray, " n"]
SomeRows = Int[np.ndarray, " _"]
"""Rows in one of several batches, whose number may be another in each."""


@dataclass(frozen=True, eq=False)
class Part:
    """The images of one split: some rows of a larger collection.

    Args:
        files: The collection.
        rows: Rows of the images in the collection, in increasing order.
    """

    files: Encoded
    rows: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Rows:
        """Return the class of each image of the split, as a copy."""
        labels: Rows = self.files.labels[self.rows]
        return labels

    def labels_at(self, rows: Rows) -> Int64[np.ndarray, " some"]:
        """Return the classes of some images of the split."""
        labels: Rows = self.files.labels[self.rows[rows]].astype(np.int64)
        return labels

    def name(self, row: int) -> str:
        """Return the name of the image at ``row`` of the split."""
        return self.files.name(int(self.rows[row]))


def whole(files: Encoded) -> Part:
    """Return all images of a collection as one part."""
    return Part(files, np.arange(len(files.labels), dtype=np.int32))


@dataclass(frozen=True)
class Form:
    """Form of decoded images; see `robustkd.data.images.decode.decode`."""

    size: int
    channels: Channels
    crop: float | int
    resize: str = "centred-square"
    interpolation: str = "bilinear"


class Decoded(NamedTuple):
    """Decoded images of a split.

    Attributes:
        pixels: Images that could be decoded, in the requested order.
        rows: Rows of these images in the split.
        failures: Rows of the other images, with the reasons.
    """

    pixels: UInt8[np.ndarray, "n channels height width"]
    rows: Rows
    failures: list[tuple[int, str]]


class Portion(NamedTuple):
    """Images that are decoded at once: some rows of a split."""

    split: Split
    rows: SomeRows


class Decoder(Dataset[Decoded]):
    """Dataset that decodes many rows of a split at once."""

    def __init__(self, parts: Mapping[Split, Part], form: Form) -> None:
        self.parts, self.form = dict(parts), form

    def __getitem__(self, portion: Portion) -> Decoded:
        part, form = self.parts[portion.split], self.form
        good: list[int] = []
        failures: list[tuple[int, str]] = []
        shape = (len(portion.rows), form.channels, form.size, form.size)
        pixels = np.empty(shape, dtype=np.uint8)
        for row in map(int, portion.rows):
            try:
                with part.files.open(int(part.rows[row])) as stream:
                    pixels[len(good)] = decode(
                        stream,
                        size=form.size,
                        channels=form.channels,
                        crop=form.crop,
                        resize=form.resize,
                        interpolation=form.interpolation,
                    )
                good.append(row)
            except UndecodableError as error:
                failures.append((row, str(error)))
            except OSError as error:
                failures.append((row, error.strerror or type(error).__name__))
        return Decoded(pixels[: len(good)], np.array(good, dtype=np.int64), failures)


def cut(order: Rows, batch_size: int) -> Iterator[SomeRows]:
    """Divide an order into batches lazily."""
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


class Decoding:
    """Decoding of the images of some splits, pass by pass.

    Worker processes live from one pass to the next. Where Python does not fork, such as on macOS or
    from Python 3.14 on, each takes seconds to start, since it imports PyTorch. A pass that begins
    before another has ended has its own.

    Args:
        parts: The splits.
        form: Form of the decoded images.
    """

    def __init__(self, parts: Mapping[Split, Part], form: Form) -> None:
        self._decoder = Decoder(parts, form)
        self._idle: list[_Workers] = []
        _all.add(self)

    def __reduce__(self) -> tuple[object, ...]:
        # A copy, such as that of another process, starts its own workers.
        return type(self), (self._decoder.parts, self._decoder.form)

    def decode(
        self, split: Split, batches: Sequence[SomeRows], *, workers: int
    ) -> Iterator[Decoded]:
        """Decode images of a split, batch by batch.

        Args:
            split: The split.
            batches: Rows of the split in each batch.
            workers: Number of worker processes; 0 decodes in this process.

        Raises:
            InputError: If a worker process cannot be started, or dies.
        """
        portions = [Portion(split, rows) for rows in batches]
        if not workers:
            yield from map(self._decoder.__getitem__, portions)
            return
        running = self._take(workers)
        try:
            yield from running.run(portions)
        except GeneratorExit:
            self._keep(running)
            raise
        except InputError as error:
            # The error of a worker contains its traceback as text.
            message = str(error).rpartition("InputError: ")[2].strip()
            _release(error)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            message = (
                "a process that decodes images died: an image crashed it, or memory ran out; "
                "try --workers 0 to see which"
            )
            _release(error)
        else:
            self._keep(running)
            return
        del running
        raise InputError(message)

    def end(self) -> None:
        """End the worker processes that no pass uses."""
        self._idle.clear()

    def _take(self, workers: int) -> _Workers:
        """Return idle workers, or new ones if there are none that live and have this number."""
        idle, self._idle = self._idle, []
        if idle and idle[0].number == workers and idle[0].alive:
            return idle[0]
        del idle
        return _Workers(self._decoder, workers)

    def _keep(self, workers: _Workers) -> None:
        """Keep workers for the next pass, in the place of those that are idle."""
        if workers.owner == os.getpid():
            self._idle = [workers]
        else:
            _of_parent.append(workers)

    def leave_to_parent(self) -> None:
        """Forget idle workers in a forked process, without ending them: they are the parent's."""
        _of_parent.extend(self._idle)
        self._idle = []


class _Workers:
    """Worker processes, which serve one pass after the other."""

    def __init__(self, decoder: Decoder, number: int) -> None:
        _check_processes()
        self.number, self.owner = number, os.getpid()
        self._processes: set[BaseProcess] = set()
        self._portions = _Portions()
        _started.add(self)
        with _any_number():
            self._loader: DataLoader[Decoded] = DataLoader(
                decoder,
                batch_size=None,
                sampler=self._portions,
                num_workers=number,
                persistent_workers=True,
                worker_init_fn=_undisturbed,
                collate_fn=cast(Callable[..., Decoded], _as_it_is),
                # Without it, the loader would draw from torch's global generator.
                generator=torch.Generator(),
            )

    def run(self, portions: Sequence[Portion]) -> Iterator[Decoded]:
        """Decode some portions, in order. What is left of an unfinished pass is dropped."""
        self._portions.next_pass = portions
        before = set(multiprocessing.active_children())
        with _any_number(), _as_it_was(), safe_children():
            stream = iter(self._loader)
        self._processes = self._processes or set(multiprocessing.active_children()) - before
        yield from stream

    @property
    def alive(self) -> bool:
        """Whether all processes that were started still run; the system may have killed some."""
        return all(process.is_alive() for process in self._processes)

    def leave_to_parent(self) -> None:
        """Forget the processes in a process that ``os.fork`` made, which would end them.

        It has the parent's set of children, and ``multiprocessing`` ends all of them at its exit.
        """
        children: set[BaseProcess] = getattr(multiprocessing.process, "_children", set())
        children -= self._processes


class _Portions(Sampler[Portion]):
    """Sampler of the portions of the next pass."""

    def __init__(self) -> None:
        self.next_pass: Sequence[Portion] = ()

    def __iter__(self) -> Iterator[Portion]:
        return iter(self.next_pass)


_all: weakref.WeakSet[Decoding] = weakref.WeakSet()
_started: weakref.WeakSet[_Workers] = weakref.WeakSet()
_of_parent: list[_Workers] = []
"""Workers that a forked process must not end, as it would if nothing held them."""


@atexit.register
def _end_all() -> None:
    """End idle workers while the interpreter is still whole."""
    for decoding in list(_all):
        decoding.end()


def _leave_to_parent() -> None:
    for decoding in list(_all):
        decoding.leave_to_parent()
    for workers in list(_started):
        workers.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _release(error: BaseException) -> None:
    """Clear the frames of an error of a loader, so that they no longer hold its iterator.

    The iterator stops its processes as soon as nothing holds it. If the frames kept it in a
    reference cycle, the garbage collector would finalise it together with its pipes in any order,
    and a thread of its queues could find a pipe closed.
    """
    for part in (error, error.__cause__, error.__context__):
        if part is not None:
            traceback.clear_frames(part.__traceback__)


def _check_processes() -> None:
    """Check that worker processes can be started, before a loader is partly set up.

    Raises:
        InputError: If the system offers no locks between processes.
    """
    try:
        with safe_children():  # the first lock may start a process that tracks all locks
            multiprocessing.Lock()
    except OSError as error:
        raise InputError(
            f"processes that decode images cannot be started: {error.strerror or error}; they "
            "need shared memory (/dev/shm) and room for further processes: provide both, or use "
            "--workers 0"
        ) from error


@contextmanager
def _any_number() -> Iterator[None]:
    """Silence the warning of more workers than cores: their number is the user's choice."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Keep what happens on SIGCHLD, which PyTorch would change when it starts a worker.

    Its handler raises the error of a dead worker wherever the program is, such as in a training
    step. Without it, the error is raised by the pass, within some seconds.
    """
    number = getattr(signal, "SIGCHLD", None)  # Windows has none
    before = None if number is None else signal.getsignal(number)
    try:
        yield
    finally:
        main = threading.current_thread() is threading.main_thread()
        if main and number is not None and before is not None:
            signal.signal(number, before)


def _undisturbed(worker: int) -> None:
    """Ignore Ctrl-C in workers, so that the main process decides when to stop."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Decoded) -> Decoded:
    """Return arrays unchanged: tensors would need shared memory, which containers may lack."""
    return batch

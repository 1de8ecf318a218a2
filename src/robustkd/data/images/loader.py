"""Decoding with worker processes; the result does not depend on their number.

Nothing in this module is random: order and augmentation are drawn in the main process, and workers
only decode.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Int, Int32, Int64, UInt8
from torch.utils.data import DataLoader, Dataset, Sampler

from robustkd.core.errors import InputError
from robustkd.core.surroundings import safe_children
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


class Decoder(Dataset[Decoded]):
    """Dataset that decodes many rows of a split at once."""

    def __init__(self, part: Part, form: Form) -> None:
        self._part, self._form = part, form

    def __getitem__(self, rows: Rows) -> Decoded:
        form = self._form
        good: list[int] = []
        failures: list[tuple[int, str]] = []
        pixels = np.empty((len(rows), form.channels, form.size, form.size), dtype=np.uint8)
        for row in map(int, rows):
            try:
                with self._part.files.open(int(self._part.rows[row])) as stream:
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


class _Batches(Sampler[SomeRows]):
    """Sampler of batches that are made lazily."""

    def __init__(self, batches: Iterable[SomeRows]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[SomeRows]:
        return iter(self._batches)


def cut(order: Rows, batch_size: int) -> Iterator[SomeRows]:
    """Divide an order into batches lazily."""
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def decoded(
    part: Part, batches: Iterable[SomeRows], *, form: Form, workers: int
) -> Iterator[Decoded]:
    """Decode the images of a split, batch by batch.

    Args:
        part: The split.
        batches: Rows of the split in each batch; iterated once.
        form: Form of the decoded images.
        workers: Number of worker processes; 0 decodes in this process.

    Raises:
        InputError: If a worker process cannot be started, or dies.
    """
    if workers:
        _check_processes()
    with warnings.catch_warnings():
        # The number of workers is the user's choice.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader: DataLoader[Decoded] = DataLoader(
            Decoder(part, form),
            batch_size=None,
            sampler=_Batches(batches),
            num_workers=workers,
            worker_init_fn=_undisturbed,
            collate_fn=cast(Callable[..., Decoded], _as_it_is),
            # Without it, each pass would draw from torch's global generator.
            generator=torch.Generator(),
        )
        with safe_children():
            stream = iter(loader)
    try:
        yield from stream
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
        return
    del stream
    raise InputError(message)


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


def _undisturbed(worker: int) -> None:
    """Ignore Ctrl-C in workers, so that the main process decides when to stop."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Decoded) -> Decoded:
    """Return arrays unchanged: tensors would need shared memory, which containers may lack."""
    return batch

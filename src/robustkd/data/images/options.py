"""Options for reading encoded images."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

import numpy as np

from robustkd.core.environment import usable_cores
from robustkd.core.errors import InputError, UsageError
from robustkd.core.launch import launched
from robustkd.core.preprocessing import check_preprocessing
from robustkd.core.types import Split
from robustkd.core.validation import check_count, check_switches, plain_number
from robustkd.data.augment import Augmentation, CropFlip, ZoomFlip
from robustkd.data.images.decode import Channels, UndecodableError, dimensions
from robustkd.data.images.listing import Encoded, shown

IN_MEMORY_BYTES = 1 << 30
"""Largest size of all decoded images, in bytes, up to which a source is kept in memory."""

_MOST_WORKERS = 4
_WORTH_WORKERS = 1000
_SMALL = 96
_FIRST_LOOK, _LOOKED_AT = 32, 4000
_LARGEST_SIZE = 4096
_LARGEST_GUESS = 512


class UnknownSizeError(UsageError):
    """The size of the models' input is not given, and cannot be guessed from the images."""


@dataclass(frozen=True)
class Reading:
    """Options for reading encoded images, for :func:`robustkd.load_data`.

    Args:
        image_size: Height and width in pixels; None if all images are squares of one size.
        channels: 3 for colour, 1 for grey.
        crop: Share of the shorter side to keep, in (0, 1], as a centred square; with ``squash``,
            share of both sides.
        flip: If True, training may mirror images.
        workers: Number of worker processes; None for one per core and at most four, or none for
            less than a thousand images. The batches do not depend on it.
        streaming: If True, images are decoded again in every epoch; if False, they are kept in
            memory; None keeps them if all take at most 1 GiB. The batches do not depend on it.
        classes: Names of the class folders in the order of the teacher's outputs, or the path of a
            text file of them; None for the sorted order, as in torchvision.
        split: Path of the file ``split.json`` of an earlier run, to hold out the same images.
        resize: ``centred-square`` keeps the proportions of an image; ``squash`` does not.
        interpolation: Filter for resampling, one of `robustkd.core.types.INTERPOLATIONS`.
        origin: Where size, crop and interpolation come from, for the report; empty for flags and
            defaults.

    Raises:
        UsageError: If a value is out of range, or of another type.

    Example:
        >>> import robustkd
        >>> reading = robustkd.Reading(image_size=64, crop=0.875, interpolation="bicubic")
        >>> reading.channels
        3
    """

    image_size: int | None = None
    channels: Channels = 3
    crop: float | int = 1.0
    flip: bool = True
    workers: int | None = None
    streaming: bool | None = None
    classes: str | Path | Sequence[str] | None = None
    split: str | Path | None = None
    resize: str = "centred-square"
    interpolation: str = "bilinear"
    origin: str = ""

    def __post_init__(self) -> None:
        self._set("image_size", _side(self.image_size))
        channels = plain_number(self.channels)
        if type(channels) is not int or channels not in get_args(Channels):
            raise UsageError(f"channels is {self.channels!r}; expected 3 (colour) or 1 (grey)")
        self._set("channels", channels)
        check_preprocessing(resize=self.resize, crop=self.crop, interpolation=self.interpolation)
        check_switches(flip=self.flip)
        if self.streaming is not None:
            check_switches(streaming=self.streaming)
        if self.workers is not None:
            check_count(least=0, workers=self.workers)
        self._set("classes", _order(self.classes))
        if self.split is not None:
            if not isinstance(self.split, str | Path):
                raise UsageError(f"split is {self.split!r}; expected the path of a file")
            self._set("split", Path(self.split))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def workers_for(self, images: int) -> int:
        """Return the number of worker processes for this many images."""
        if self.workers is not None:
            return self.workers
        if images < _WORTH_WORKERS:
            return 0
        return min(_MOST_WORKERS, max(1, usable_cores() // launched().here))

    def streams(self, images: int, size: int) -> bool:
        """Return whether this many images of a size are decoded again in every epoch."""
        if self.streaming is not None:
            return self.streaming
        return images * self.channels * size**2 > IN_MEMORY_BYTES

    def augmentation(self, size: int) -> Augmentation:
        """Return the augmentation for a size: shifts of small images, zooms into large ones."""
        return CropFlip(size // 8, self.flip) if size < _SMALL else ZoomFlip(flip=self.flip)

    def check_unused(self, name: str, used: Sequence[str] = ()) -> None:
        """Raise an error for an option that a source does not support.

        Raises:
            UsageError: If an option that is not in ``used`` differs from its default.
        """
        used = (
            *used,
            "workers",
            "origin",
            *(("resize", "interpolation") if "crop" in used else ()),
        )
        for field in fields(self):
            chosen = getattr(self, field.name)
            if chosen != field.default and field.name not in used:
                raise UsageError(
                    f"{field.name} is {chosen!s}; {name} does not support this option: leave it out"
                )


def _side(size: object) -> int | None:
    """Return an image size as Python's own number.

    Raises:
        UsageError: If it is no number of pixels.
    """
    number = plain_number(size)
    if number is None:
        return None
    if type(number) is not int:
        raise UsageError(
            f"image_size is {size!r}; expected one whole number of pixels, for height and width"
        )
    if not 1 <= number <= _LARGEST_SIZE:
        raise UsageError(f"image_size is {number}; expected 1 to {_LARGEST_SIZE} pixels")
    return number


def _order(classes: object) -> Path | tuple[str, ...] | None:
    """Return names of classes as a tuple, or the path of the file that has them.

    Raises:
        UsageError: If it is neither.
    """
    if classes is None:
        return None
    if isinstance(classes, str | Path):
        return Path(classes)
    if isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes):
        return tuple(classes)
    raise UsageError(f"classes is {classes!r}; expected a list of names, or the path of a file")


def guess_size(train: Encoded, others: Iterable[tuple[Split, Encoded]], name: str) -> int:
    """Determine the size of square images from the headers of at most some thousand of them.

    The images are spread evenly over each split, and over the splits by their sizes.

    Args:
        train: The training images, which are looked at first.
        others: Other splits and their images.
        name: Name of the data, for messages.

    Raises:
        UnknownSizeError: If these images differ in size, are not square, or are large.
        InputError: If no image of a small sample of ``train`` can be read.
    """
    found: dict[tuple[int, int], Split] = {}
    for size in _sizes(train, _FIRST_LOOK):
        found.setdefault(size, "train")
    if not found:
        raise InputError(
            f"{shown(f'{name} train')}: no image can be read, among them {shown(train.name(0))}; "
            "expected images of a known format"
        )
    splits: list[tuple[Split, Encoded]] = [("train", train), *others]
    total = sum(len(files.labels) for _, files in splits)
    for split, files in splits:
        share = _LOOKED_AT * len(files.labels) // total
        for size in _sizes(files, max(share, _FIRST_LOOK)):
            if not _is_plain(found):
                break
            found.setdefault(size, split)
    if not _is_plain(found):
        few = sorted(found)[:2]
        sizes = " and ".join(f"{width}x{height}" for width, height in few)
        where = " and ".join(dict.fromkeys(found[size] for size in few))
        raise UnknownSizeError(
            f"{shown(f'{name} {where}')}: images of {sizes} pixels, so the model's input size "
            "cannot be guessed; give it with --image-size, or Reading(image_size=...) in Python"
        )
    return min(found)[0]


def _is_plain(sizes: Collection[tuple[int, int]]) -> bool:
    """Return whether all images have one size, and are squares and not large."""
    width, height = min(sizes)
    return len(sizes) == 1 and width == height and width <= _LARGEST_GUESS


def _sizes(files: Encoded, most: int) -> Iterator[tuple[int, int]]:
    """Yield width and height of some images, without those that cannot be read."""
    n = len(files.labels)
    for row in np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64)):
        try:
            with files.open(int(row)) as stream:
                yield dimensions(stream)
        except (OSError, UndecodableError):
            continue

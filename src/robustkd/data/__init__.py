"""Data sources; a new one is a loader in a file of ``sources`` and a row in a table here.

Its name is also in :data:`robustkd.core.known_names.DATA`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from robustkd.core.errors import UsageError
from robustkd.core.known_names import HUB, check_data, is_folder
from robustkd.data.augment import CropFlip, ZoomFlip
from robustkd.data.datasets import from_dataset
from robustkd.data.images.options import Reading
from robustkd.data.images.streamed import Pictures, split_text
from robustkd.data.in_memory import InMemory
from robustkd.data.labelled import Labelled
from robustkd.data.sources.cifar import load_cifar10, load_cifar100
from robustkd.data.sources.digits import load_digits
from robustkd.data.sources.fashion_mnist import load_fashion_mnist
from robustkd.data.sources.flowers import load_flowers102
from robustkd.data.sources.folder import load_folder
from robustkd.data.sources.gtsrb import load_gtsrb
from robustkd.data.sources.hub import load_hub
from robustkd.data.sources.idx import read_idx
from robustkd.data.sources.tiny_imagenet import load_tiny_imagenet

__all__ = [
    "PICTURES",
    "SOURCES",
    "CropFlip",
    "InMemory",
    "Labelled",
    "Pictures",
    "Reading",
    "ZoomFlip",
    "from_dataset",
    "is_folder",
    "load",
    "load_folder",
    "names",
    "open_source",
    "read_idx",
    "split_text",
]

SOURCES: dict[str, Callable[[Path | None], InMemory]] = {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "cifar-10": load_cifar10,
    "cifar-100": load_cifar100,
}
"""Loaders of arrays by name; each takes the folder of the data, or None for the usual places."""

PICTURES: dict[str, Callable[[Path | None, Reading | None], Pictures]] = {
    "gtsrb": load_gtsrb,
    "flowers-102": load_flowers102,
    "tiny-imagenet": load_tiny_imagenet,
}
"""Loaders of encoded images by name; each takes a :class:`Reading` as well."""


def names() -> tuple[str, ...]:
    """Return the names that `load` accepts, in alphabetical order."""
    return tuple(sorted([*SOURCES, *PICTURES]))


def load(
    name: str | Path,
    *,
    root: str | Path | None = None,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    reading: Reading | None = None,
) -> InMemory:
    """Load a data set, or a fixed class-balanced subset of it, into memory.

    Args:
        name: Name of a data set, see ``robustkd list``; the path of a folder of images; or
            ``hf:NAME@REVISION`` for a data set of the Hugging Face Hub. All images are held in
            memory; :func:`robustkd.run` reads large folders image by image instead.
        root: Folder of the files of a named data set; if None, the folder in the environment
            variable ``ROBUSTKD_DATA``, then ``~/.cache/robustkd``.
        train: Number of training images to keep, at least one for each class; None for all.
        validation: Number of validation images to keep, likewise.
        test: Number of test images to keep, likewise.
        reading: How the images of a folder or of the hub are read; by default, the size is that
            of the images, and colours are kept.

    Returns:
        A data source in memory.

    Raises:
        UsageError: If the name is unknown, a number is out of range, or ``root`` is given for
            bundled data.
        InputError: If files are missing or damaged.

    Example:
        >>> import robustkd
        >>> robustkd.load_data("digits", train=100).size("train")
        100
    """
    place = None if root is None else Path(root)
    found = open_source(os.fspath(name), root=place, reading=reading)
    chosen = found.subset(train=train, validation=validation, test=test)
    return chosen if isinstance(chosen, InMemory) else chosen.in_memory()


def open_source(
    data: str, *, root: Path | None = None, reading: Reading | None = None
) -> InMemory | Pictures:
    """Open a data source by name, a folder of images, or a data set of the Hugging Face hub.

    Args:
        data: One of `names`; or the path of a folder, as
            `robustkd.data.sources.folder.load_folder` takes it; or ``hf:NAME@REVISION``, as
            `robustkd.data.sources.hub.load_hub` takes it. A name takes precedence over a
            folder of that name: write ``./digits`` for the folder.
        root: Folder of the files of a named source; None searches the usual places.
        reading: How encoded images are read.

    Raises:
        UsageError: If the name is unknown, or the source does not support an option.
        InputError: If files are missing or damaged.
    """
    reading = Reading() if reading is None else reading
    if not isinstance(reading, Reading):
        raise UsageError(f"reading is of type {type(reading).__name__}; expected robustkd.Reading")
    if data in SOURCES:
        reading.check_unused(data)
        return SOURCES[data](root)
    if data in PICTURES:
        return PICTURES[data](root, reading)
    check_data(data)
    if root is not None:
        raise UsageError(f"root is {str(root)!r}; {data} is the path of the data: leave it out")
    return load_hub(data, reading) if data.startswith(HUB) else load_folder(Path(data), reading)

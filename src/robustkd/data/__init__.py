"""Where clean images come from; a new source is one loader and one row in a table."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from robustkd.core.errors import UsageError
from robustkd.core.names import nearest
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
from robustkd.data.sources.hub import PREFIX, load_hub
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
"""Loaders of arrays by name; each takes the folder of the data, or None to find it itself."""

PICTURES: dict[str, Callable[[Path | None, Reading | None], Pictures]] = {
    "gtsrb": load_gtsrb,
    "flowers-102": load_flowers102,
    "tiny-imagenet": load_tiny_imagenet,
}
"""Loaders of encoded images by name; each also takes how they are read."""


def names() -> tuple[str, ...]:
    """Names that `load` knows, in alphabetical order."""
    return tuple(sorted([*SOURCES, *PICTURES]))


def load(
    name: str | Path,
    *,
    root: str | Path | None = None,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
) -> InMemory:
    """Load a data set into memory, whole or as a class-balanced subset that is always the same.

    Args:
        name: One of `names`; the path of a folder of images; or ``hf:NAME@REVISION``. See
            `open_source`, which reads a large folder without loading it.
        root: Folder of the data; None for where the source usually is.
        train: Images to keep of this split, at least one for each class; None for all.
        validation: Likewise.
        test: Likewise.

    Raises:
        UsageError: An unknown name, a number out of range, or a ``root`` for bundled data.
        InputError: Files are missing or damaged.

    Example:
        >>> load("digits", train=100).size("train")
        100
    """
    found = open_source(os.fspath(name), root=None if root is None else Path(root))
    chosen = found.subset(train=train, validation=validation, test=test)
    return chosen if isinstance(chosen, InMemory) else chosen.in_memory()


def open_source(
    data: str, *, root: Path | None = None, reading: Reading | None = None
) -> InMemory | Pictures:
    """A data source by name, from a folder of images, or from the Hugging Face hub.

    Args:
        data: One of `names`; or the path of a folder, as
            `robustkd.data.sources.folder.load_folder` takes it; or ``hf:NAME@REVISION``, as
            `robustkd.data.sources.hub.load_hub` does. A name comes before a
            folder of that name: ``./digits`` is the folder.
        root: Folder of a named source's files; None for where it usually is.
        reading: How encoded images are read.

    Raises:
        UsageError: An unknown name, or a choice that the source does not offer.
        InputError: Files are missing or damaged.
    """
    reading = reading or Reading()
    if data in SOURCES:
        reading.check_unused(data)
        return SOURCES[data](root)
    if data in PICTURES:
        return PICTURES[data](root, reading)
    hub = data.startswith(PREFIX)
    if not hub and not is_folder(data):
        raise _unknown(data)
    if root is not None:
        raise UsageError(f"root={str(root)!r}: {data} says where the data is; leave it out")
    return load_hub(data, reading) if hub else load_folder(Path(data), reading)


def is_folder(data: str) -> bool:
    """Whether `open_source` takes this for the path of a folder."""
    if data in SOURCES or data in PICTURES or data.startswith(PREFIX):
        return False
    return os.sep in data or os.path.isdir(data)


def _unknown(name: str) -> UsageError:
    hint = nearest(name, names(), otherwise="choose one of these, or give a folder")
    return UsageError(f"unknown data source {name!r}: expected {', '.join(names())}; {hint}")

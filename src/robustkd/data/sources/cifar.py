"""CIFAR-10 and CIFAR-100: 60,000 colour images of things, 32x32.

Alex Krizhevsky, 2009, "Learning Multiple Layers of Features from Tiny Images", University of
Toronto.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8

from robustkd.data.augment import CropFlip
from robustkd.data.in_memory import InMemory
from robustkd.data.labelled import Labelled, stratified_order
from robustkd.data.sources.download import Official

if TYPE_CHECKING:
    import torchvision

_VALIDATION_PARTS = 10
_SPLIT_SEED = 0


def load_cifar10(root: Path | None = None) -> InMemory:
    """CIFAR-10: train 45,000 / validation 5,000 / test 10,000 of 3 x 32 x 32, ten classes.

    The test split is the official one; validation is a fixed tenth of the official training
    images, with the classes in equal shares.

    Args:
        root: Folder that holds ``cifar-10-batches-py``; None searches the folder that the
            environment variable ROBUSTKD_DATA names, then ``~/.cache/robustkd``, then downloads.

    Raises:
        InputError: If the files are missing or damaged.
    """
    from torchvision.datasets import CIFAR10

    return _load("cifar-10", "CIFAR-10", CIFAR10, "batches.meta", root)


def load_cifar100(root: Path | None = None) -> InMemory:
    """CIFAR-100: train 45,000 / validation 5,000 / test 10,000 of 3 x 32 x 32, 100 classes.

    Splits and ``root`` are as with `load_cifar10`; the folder is ``cifar-100-python``.

    Raises:
        InputError: If the files are missing or damaged.
    """
    from torchvision.datasets import CIFAR100

    return _load("cifar-100", "CIFAR-100", CIFAR100, "meta", root)


def _load(
    name: str, title: str, reader: type[torchvision.datasets.CIFAR10], mark: str, root: Path | None
) -> InMemory:
    """Read the files with torchvision, which verifies checksums before unpickling."""
    official = Official(
        title, reader.base_folder, (mark,), lambda cache: reader(str(cache), download=True)
    )
    place = official.locate(root)
    with official.reading(place), warnings.catch_warnings():
        # Current numpy warns about the old numpy version of these pickles.
        warnings.simplefilter("ignore")
        parts = [reader(str(place), train=train) for train in (True, False)]
        everything, test = (_labelled(part.data, part.targets) for part in parts)
    order = stratified_order(everything.labels, seed=_SPLIT_SEED)
    validation, train = order.tensor_split([len(order) // _VALIDATION_PARTS])
    return InMemory(
        name=name,
        classes=tuple(parts[0].classes),
        train=everything.take(train),
        validation=everything.take(validation),
        test=test,
        augmentation=CropFlip(pad=4, flip=True),
    )


def _labelled(pixels: UInt8[np.ndarray, "n height width 3"], labels: list[int]) -> Labelled:
    images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return Labelled(torch.from_numpy(images), torch.tensor(labels, dtype=torch.int64))

"""Labelled images as bytes, and class-balanced orders and subsets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int32, Int64, UInt8
from torch import Tensor

from robustkd.core.errors import InputError, UsageError
from robustkd.core.types import Labels
from robustkd.core.validation import check_seed, check_whole

_AT_ONCE = 1 << 14


class Labelled(NamedTuple):
    """Images as bytes 0..255 (N x C x H x W, C of 1 or 3) and their classes."""

    images: UInt8[Tensor, "n channels height width"]
    labels: Int64[Tensor, " n"]

    def take(self, index: Labels) -> Labelled:
        """Return the images at ``index``, in their original order."""
        index = index.sort().values
        return Labelled(self.images[index], self.labels[index])

    def check(self, where: str, classes: int) -> None:
        """Check types, shapes and labels, which would otherwise cause errors much later.

        Args:
            where: Description of the images, for messages.
            classes: Number of classes; labels are 0 to ``classes - 1``.

        Raises:
            UsageError: If a tensor has the wrong type or shape.
            InputError: If there is no image, or the labels do not fit the images or the classes.
        """
        images, labels = self
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UsageError(
                f"{where}: images are {images.dtype} of shape {tuple(images.shape)}, expected "
                "torch.uint8 of N x 1 x H x W or N x 3 x H x W; convert them"
            )
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise UsageError(
                f"{where}: labels are {labels.dtype} of shape {tuple(labels.shape)}, expected "
                "torch.int64 of one dimension; convert them"
            )
        if len(images) != len(labels):
            raise InputError(
                f"{where}: {len(images)} images but {len(labels)} labels, expected as many; "
                "check that both belong together"
            )
        if images.numel() == 0:
            raise InputError(f"{where}: no images, expected at least one; check the source")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise InputError(
                f"{where}: labels reach from {low} to {high}, expected 0 to {classes - 1}; "
                "check that the labels belong to this data set"
            )


def stratified_order(labels: Int64[Tensor, " n"], *, seed: int) -> Int64[Tensor, " n"]:
    """Return a random order in which every prefix has about the same shares of the classes.

    The image of rank r among the m images of its class is placed at r / m. The first n images
    contain every class as soon as n is at least the number of classes, and smaller subsets are
    contained in larger ones.

    Args:
        labels: Class of each image, at least 0.
        seed: The same seed and labels give the same order on every machine.

    Returns:
        A permutation of 0..n-1.

    Example:
        >>> order = stratified_order(torch.tensor([0, 0, 0, 0, 1, 1]), seed=0)
        >>> sorted(order[:3].div(4, rounding_mode="floor").tolist())
        [0, 0, 1]
    """
    own = labels.numpy()
    members = class_sizes(own)
    position = np.empty(len(own))
    for rows, rank in random_ranks(own, seed=seed):
        position[rows] = rank / members[own[rows]]
    # Sorted by position, and by class for equal positions.
    return torch.from_numpy(np.lexsort((own, position)))


def class_sizes(labels: Int[np.ndarray, " n"], *, classes: int = 0) -> Int64[np.ndarray, " _"]:
    """Count the images of each class.

    Args:
        labels: Class of each image, at least 0.
        classes: Smallest length of the result.
    """
    sizes = np.zeros(max(classes, 1 + int(labels.max(initial=-1))), dtype=np.int64)
    for part in slices(len(labels)):
        sizes += np.bincount(labels[part], minlength=len(sizes))
    return sizes


class Ranks(NamedTuple):
    """Ranks of some images among those of their class, from 0."""

    rows: Int32[np.ndarray, " some"]
    rank: Int64[np.ndarray, " some"]


def random_ranks(labels: Int[np.ndarray, " n"], *, seed: int) -> Iterator[Ranks]:
    """Draw a random order of the images of each class.

    Args:
        labels: Class of each image, at least 0.
        seed: The same seed and labels give the same ranks on every machine.

    Yields:
        All images once, in pieces; only four bytes per image are in memory at a time.
    """
    n = len(labels)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    met = np.zeros(1 + int(labels.max(initial=-1)), dtype=np.int64)
    for part in slices(n):
        rows = order[part].numpy()
        rows = rows[labels[rows].argsort(kind="stable")]
        own = labels[rows]
        count = np.bincount(own, minlength=len(met))
        first = met - (count.cumsum() - count)
        yield Ranks(rows, first[own] + np.arange(len(rows)))
        met += count


def slices(n: int) -> Iterator[slice]:
    """Yield slices of an array, for processing without a copy of all of it."""
    return (slice(start, min(start + _AT_ONCE, n)) for start in range(0, n, _AT_ONCE))


def first_rows(
    labels: Int64[Tensor, " n"], n: int | None, *, split: str, name: str, classes: int, seed: int
) -> Int64[Tensor, " kept"]:
    """Return the rows of a class-balanced subset, in increasing order.

    Args:
        labels: Class of each image of the split.
        n: Number of images to keep, at least the number of classes; None for all.
        split: Name of the split, for messages.
        name: Name of the data source, for messages.
        classes: Number of classes.
        seed: Seed of the choice; with one seed, a smaller subset is contained in a larger one.

    Raises:
        UsageError: If ``n`` or the seed is no whole number, or out of range.
    """
    if n is None:
        return torch.arange(len(labels))
    check_whole(**{split: n})
    seed = check_seed(seed)
    if not classes <= n <= len(labels):
        raise UsageError(
            f"{split} is {n}; {name} can give from {classes} (one of each class) "
            f"to {len(labels)} images; choose a number in between"
        )
    return stratified_order(labels, seed=seed)[:n].sort().values

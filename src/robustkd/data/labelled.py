"""Labelled images as bytes, and the order from which all subsets of them are cut."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from robustkd.errors import InputError, UsageError
from robustkd.types import Labels


class Labelled(NamedTuple):
    """Images as bytes 0..255 (N x C x H x W, C of 1 or 3) and their classes."""

    images: UInt8[Tensor, "n channels height width"]
    labels: Int64[Tensor, " n"]

    def take(self, index: Labels) -> Labelled:
        """The images that ``index`` names, in the order in which they are held."""
        index = index.sort().values
        return Labelled(self.images[index], self.labels[index])

    def check(self, where: str, classes: int) -> None:
        """Refuse what would fail, or teach nonsense, much later.

        Args:
            where: What to call these images in a message.
            classes: Number of classes; labels are 0 to ``classes - 1``.

        Raises:
            UsageError: A tensor has the wrong type or shape.
            InputError: There is no image, or the labels do not fit the images or the classes.
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


class Ranks(NamedTuple):
    """The images class by class, each class in a random order of its own.

    Attributes:
        rows: Which image.
        rank: Its place among those of its class, from 0.
        members: How many its class has.
    """

    rows: Int64[Tensor, " n"]
    rank: Int64[Tensor, " n"]
    members: Int64[Tensor, " n"]


def stratified_order(labels: Int64[Tensor, " n"], *, seed: int) -> Int64[Tensor, " n"]:
    """A random order of which every beginning mixes the classes as the whole does.

    The image of rank r among the m of its class stands at r / m. So the first n images contain
    every class as soon as n reaches the number of classes, and the first n are among the first
    n + 1: smaller subsets are parts of larger ones.

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
    grouped, rank, members = random_ranks(labels, seed=seed)
    return grouped[(rank.double() / members).argsort(stable=True)]


def random_ranks(labels: Int64[Tensor, " n"], *, seed: int) -> Ranks:
    """Put the images of each class into a random order of their own.

    Args:
        labels: Class of each image, at least 0.
        seed: The same seed and labels give the same ranks on every machine.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    grouped = shuffled[labels[shuffled].argsort(stable=True)]
    count = labels.bincount()
    start = count.cumsum(0) - count
    own = labels[grouped]
    return Ranks(grouped, torch.arange(len(labels)) - start[own], count[own])


def first_rows(
    labels: Int64[Tensor, " n"], n: int | None, *, split: str, name: str, classes: int, seed: int
) -> Int64[Tensor, " kept"]:
    """Rows of a class-balanced subset, in rising order.

    Args:
        labels: Class of each image of the split.
        n: How many to keep, from the number of classes to all; None for all.
        split: What to call the split in a message.
        name: What to call the data source.
        classes: Number of classes.
        seed: Which ones; with one seed a smaller subset is a part of a larger one.

    Raises:
        UsageError: ``n`` is out of range.
    """
    if n is None:
        return torch.arange(len(labels))
    if not classes <= n <= len(labels):
        raise UsageError(
            f"{split}={n}: {name} can give from {classes} (one of each class) "
            f"to {len(labels)} images; choose a number in between"
        )
    return stratified_order(labels, seed=seed)[:n].sort().values

"""Checks of data sources that users write themselves."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Final, cast

import torch
from torch import Tensor

from robustkd.core.errors import InputError, UsageError
from robustkd.core.types import UNLABELLED, Batch, DataSource, Labels, Split
from robustkd.data.images.streamed import Pictures
from robustkd.data.in_memory import InMemory
from robustkd.data.wrapper import Wrapper

_PARTS = ("name", "classes", "image_shape", "size")
LEARNING: Final[tuple[Split, ...]] = ("train", "validation")
"""The splits that a training or a search reads."""
_SOME = 64
_ROUNDED = 0.01
"""How far pixels may be outside of [0, 1], which resizing and changes of the hue cause."""


def check_source(
    data: object,
    *,
    dtypes: Collection[torch.dtype] = (torch.float32,),
    splits: Sequence[Split] = LEARNING,
) -> None:
    """Check that an object is a data source, and the first batch of each split that will be used.

    Sources of this package check their images themselves. In others, mistakes would raise errors of
    torch much later, or none at all. Further batches are checked by :func:`check_batch`
    where they are read, since this function would have to read all images.

    Args:
        data: What the user gives as data.
        dtypes: Types that pixels may have, which are those that the network takes.
        splits: The splits that the caller reads.

    Raises:
        UsageError: If it is no data source, or its batches have other types or shapes than
            `robustkd.core.types.DataSource` describes.
        InputError: If pixels are not in [0, 1], or labels are no classes.
    """
    if not hasattr(data, "batches"):
        raise UsageError(
            f"data is of type {type(data).__name__}; expected a data source, such as load_data and "
            "from_dataset return"
        )
    missing = [part for part in _PARTS if not hasattr(data, part)]
    if missing:
        raise UsageError(
            f"data is of type {type(data).__name__} without {', '.join(missing)}; expected a "
            "data source, see robustkd.core.types.DataSource"
        )
    source = cast(DataSource, data)
    if _checks_itself(source):
        return
    for split in splits:
        batch = next(iter(source.batches(split, batch_size=_SOME)), None)
        if batch is None:
            raise InputError(f"{source.name} {split}: no images, expected at least one")
        _check_batch(batch, source, split, dtypes)


def check_batch(batch: Batch, data: DataSource, split: Split) -> None:
    """Check a further batch of a split, unless the source is one of this package.

    Args:
        batch: The batch; it may be empty.
        data: Its source.
        split: Its split.

    Raises:
        UsageError: If its tensors have other shapes than `robustkd.core.types.DataSource`
            describes, or another kind of numbers.
        InputError: If pixels are not in [0, 1], or labels are no classes.
    """
    if _checks_itself(data):
        return
    images = getattr(batch, "images", None)
    if not isinstance(images, Tensor) or len(images):
        _check_batch(batch, data, split)


def _checks_itself(data: DataSource) -> bool:
    while isinstance(data, Wrapper):
        data = data.source
    return isinstance(data, InMemory | Pictures)


def _check_batch(
    batch: object, data: DataSource, split: Split, dtypes: Collection[torch.dtype] = ()
) -> None:
    """Check a batch, whose pixels may have any floating-point type if none is given."""
    where = f"{data.name} {split}"
    if not all(isinstance(getattr(batch, part, None), Tensor) for part in Batch._fields):
        raise UsageError(
            f"{where}: a batch is of type {type(batch).__name__}; expected "
            "robustkd.core.types.Batch with the tensors images, labels and rows"
        )
    images, labels, rows = (getattr(batch, part) for part in Batch._fields)
    if not len(images):
        raise InputError(f"{where}: a batch has no images, expected at least one")
    shape = tuple(data.image_shape)
    right = images.dtype in dtypes if dtypes else images.is_floating_point()
    if not right or tuple(images.shape[1:]) != shape:
        kinds = " or ".join(map(str, dtypes)) or "floating-point numbers"
        raise UsageError(
            f"{where}: images are {images.dtype} of shape {tuple(images.shape)}; expected "
            f"{kinds} of N x {' x '.join(map(str, shape))}, with pixels in [0, 1]"
        )
    for name, numbers in (("labels", labels), ("rows", rows)):
        if numbers.dtype != torch.int64 or numbers.shape != images.shape[:1]:
            raise UsageError(
                f"{where}: {name} are {numbers.dtype} of shape {tuple(numbers.shape)}; expected "
                f"torch.int64 of shape ({len(images)},)"
            )
    low, high = _bounds(images)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"{where}: pixels are not finite; expected values in [0, 1]")
    if low < -_ROUNDED or high > 1 + _ROUNDED:
        raise InputError(
            f"{where}: pixels reach from {low:.6g} to {high:.6g}; expected 0 to 1: divide bytes by "
            "255, and do not normalise, since that is the first layer of every model"
        )
    _check_labels(labels, len(data.classes), split, where)


def _check_labels(labels: Labels, classes: int, split: Split, where: str) -> None:
    least = UNLABELLED if split == "train" else 0
    low, high = _bounds(labels)
    if low < least or high >= classes:
        unlabelled = f", or {UNLABELLED} for an image without a label" if least < 0 else ""
        raise InputError(
            f"{where}: labels reach from {low} to {high}; expected 0 to {classes - 1}{unlabelled}"
        )


def _bounds(values: Tensor) -> tuple[int | float, int | float]:
    """Return the smallest and the largest value, with one synchronisation; NaN if there is one."""
    low, high = torch.stack(values.detach().aminmax()).tolist()
    return low, high

"""The first batch of a split, on which networks are tried."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch

from robustkd.core.errors import InputError
from robustkd.core.types import Batch, DataSource, Split


def first_batch(
    data: DataSource,
    split: Split,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    shuffle: torch.Generator | None = None,
) -> Batch:
    """Return the first batch of a split of a source that was checked before.

    Args:
        data: The source.
        split: Its split.
        batch_size: Largest number of images.
        device: Device of the batch.
        shuffle: Generator for a random order; None keeps the order of the split.

    Raises:
        InputError: If there is none, or it is not the first, since the source can be read only
            once.
    """
    batches = data.batches(split, batch_size=batch_size, device=device, shuffle=shuffle)
    if not _is_begun(batches):
        for batch in batches:
            return batch
    raise InputError(
        f"{data.name} {split}: the images cannot be read again from the first one; expected a new "
        "iterator at every call of batches"
    )


def _is_begun(batches: Iterable[Batch]) -> bool:
    """Return whether a generator has already made a batch."""
    return (
        inspect.isgenerator(batches) and inspect.getgeneratorstate(batches) != inspect.GEN_CREATED
    )

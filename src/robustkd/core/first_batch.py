"""The first batch of a split, on which networks are tried."""

from __future__ import annotations

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
        InputError: If there is none, since the source can be read only once.
    """
    for batch in data.batches(split, batch_size=batch_size, device=device, shuffle=shuffle):
        return batch
    raise InputError(
        f"{data.name} {split}: no images when they are read again; expected a new iterator at "
        "every call of batches"
    )

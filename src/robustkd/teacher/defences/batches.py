"""Endless training batches, for defences that train for a number of steps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat

import torch

from robustkd.core.types import Batch, DataSource


def endless(
    clean: DataSource, batch_size: int, device: torch.device, seed: int
) -> Callable[[], Batch]:
    """Return a function that gives the next full training batch, shuffled and augmented.

    Args:
        clean: The images.
        batch_size: Images per batch; all of them if there are fewer.
        device: Device of the batches.
        seed: Seed of order and augmentation.
    """
    order, crops = (torch.Generator().manual_seed(2 * seed + k) for k in (0, 1))
    size = min(batch_size, clean.size("train"))
    passes = (
        clean.batches("train", batch_size=size, device=device, shuffle=order, augment=crops)
        for _ in repeat(None)
    )
    full = (batch for batch in chain.from_iterable(passes) if len(batch.labels) == size)
    return lambda: next(full)

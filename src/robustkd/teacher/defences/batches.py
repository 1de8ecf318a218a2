"""Training batches of the defences: without end, and with a label for every image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from robustkd.core.types import UNLABELLED, Batch, DataSource
from robustkd.models.features.taps import frozen_modes
from robustkd.training.batches import endless


def training_batches(
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
    batches = endless(clean, batch_size, device, shuffle=order, augment=crops)
    return lambda: next(batches)


@torch.no_grad()
def with_predicted_labels(batch: Batch, network: nn.Module) -> Batch:
    """Return the batch with the prediction of a network for each image that has no label."""
    missing = batch.labels == UNLABELLED
    if not bool(missing.any()):
        return batch
    with frozen_modes(network):
        said = network(batch.images).argmax(1)
    return batch._replace(labels=torch.where(missing, said, batch.labels))

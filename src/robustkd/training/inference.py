"""Running a model over a split of a DataSource."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import starmap

import torch
from torch import nn

from robustkd.core.devices import device_of
from robustkd.core.types import DataSource, Images, Labels, Logits, Split
from robustkd.models.features.taps import frozen_modes
from robustkd.training.metrics import Proportion, accuracy

_BATCH = 256


def predict(
    model: nn.Module,
    data: DataSource,
    split: Split,
    *,
    transform: Callable[[Images], Images] | None = None,
) -> tuple[Logits, Labels]:
    """Logits and labels of a split, in its order, on the CPU.

    The model runs in eval mode without gradients, and keeps the modes that it had.

    Args:
        model: Any classifier of images in [0, 1].
        data: The images.
        split: Which of them; they are not augmented.
        transform: Applied to every batch of images first.
    """
    with torch.inference_mode(), frozen_modes(model):
        found = list(_outputs(model, data, split, transform))
    logits, labels = zip(*found, strict=True)
    return torch.cat(logits).float(), torch.cat(labels)


def accuracy_on(model: nn.Module, data: DataSource, split: Split) -> Proportion:
    """Clean accuracy of a model on a split, counted batch by batch."""
    with torch.inference_mode(), frozen_modes(model):
        counts = starmap(accuracy, _outputs(model, data, split))
        return sum(counts, start=Proportion(0, 0))


def finite_on(model: nn.Module, data: DataSource, split: Split) -> bool:
    """Whether all logits of a model on a split are finite numbers, and their squares too.

    Losses square them; beyond that no training goes on.
    """
    with torch.inference_mode(), frozen_modes(model):
        return all(logits.square().isfinite().all() for logits, _ in _outputs(model, data, split))


def _outputs(
    model: nn.Module,
    data: DataSource,
    split: Split,
    transform: Callable[[Images], Images] | None = None,
) -> Iterator[tuple[Logits, Labels]]:
    """Logits and labels of each batch, on the CPU."""
    for batch in data.batches(split, batch_size=_BATCH, device=device_of(model)):
        images = batch.images if transform is None else transform(batch.images)
        yield model(images).cpu(), batch.labels.cpu()

"""Running a model over a split of a DataSource."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from robustkd.metrics import Proportion, accuracy
from robustkd.taps import frozen_modes
from robustkd.types import DataSource, Images, Labels, Logits, Split

_BATCH = 256


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter; the CPU for a model without any."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def default_device() -> torch.device:
    """Where training happens: the accelerator if there is one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


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
    logits, labels = [], []
    with torch.inference_mode(), frozen_modes(model):
        for batch in data.batches(split, batch_size=_BATCH, device=device_of(model)):
            images = batch.images if transform is None else transform(batch.images)
            logits.append(model(images).cpu())
            labels.append(batch.labels.cpu())
    return torch.cat(logits).float(), torch.cat(labels)


def accuracy_on(model: nn.Module, data: DataSource, split: Split) -> Proportion:
    """Clean accuracy of a model on a split."""
    return accuracy(*predict(model, data, split))

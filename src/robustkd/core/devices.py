"""The device of a model, and the default device for training."""

from __future__ import annotations

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter; the CPU if the model has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def default_device() -> torch.device:
    """Return the device for training: the accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")

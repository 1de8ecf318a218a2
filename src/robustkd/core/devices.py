"""The device of a model, and the default device for training."""

from __future__ import annotations

import os

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter; the CPU if the model has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def default_device() -> torch.device:
    """Return the device for training: the accelerator if there is one, else the CPU.

    As in accelerate, the environment variable ``ACCELERATE_USE_CPU`` asks for the CPU.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return torch.device("cpu")
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")

"""Size of a model: its parameters, and its multiplications for one image."""

from __future__ import annotations

import torch
from torch import nn

from robustkd.models.features.taps import frozen_modes


def parameters(model: nn.Module) -> int:
    """Number of learnable parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Number of multiply-accumulate operations for one image.

    Convolutions, matrix products and attention are counted, by PyTorch's ``FlopCounterMode`` during
    one forward pass in eval mode.

    Args:
        model: Any network on images.
        image_shape: Channels, height and width in pixels.
    """
    from torch.utils.flop_counter import FlopCounterMode

    first = next(model.parameters(), None)
    device = "cpu" if first is None else first.device
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), frozen_modes(model), counter:
        model(torch.zeros(1, *image_shape, device=device))
    return int(counter.get_total_flops()) // 2

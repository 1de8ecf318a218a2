"""Small U-Net that changes images within a bound, for the inversion of triggers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.core.types import Images

_HIDDEN = 16
_START = 0.01
_TINY = 1e-12


class Generator(nn.Module):
    """U-Net whose output is added to images; the change is bounded and images stay in [0, 1].

    At first, it changes images little. With two levels of average pooling, a position of the
    coarsest level sees 18 x 18 pixels. In small images these include the zeros around the borders,
    so that the generator can learn where a trigger is placed.

    Args:
        channels: Channels of the images.
        radius: Largest root mean square of the change over an image's values, in (0, 1].
    """

    def __init__(self, channels: int, radius: float) -> None:
        super().__init__()
        self.radius = radius
        self.fine = _block(channels, _HIDDEN)
        self.middle = _block(_HIDDEN, 2 * _HIDDEN)
        self.coarse = _block(2 * _HIDDEN, 4 * _HIDDEN)
        self.to_middle = _block(6 * _HIDDEN, 2 * _HIDDEN)
        self.to_fine = _block(3 * _HIDDEN, _HIDDEN)
        self.change = nn.Conv2d(_HIDDEN, channels, 1)
        weight, bias = self.change.parameters()
        nn.init.normal_(weight, std=_START)
        nn.init.zeros_(bias)

    def forward(self, images: Images) -> Images:
        """Change images (N x C x H x W, in [0, 1])."""
        fine = self.fine(images - 0.5)
        middle = self.middle(F.avg_pool2d(fine, 2, ceil_mode=True))
        coarse = self.coarse(F.avg_pool2d(middle, 2, ceil_mode=True))
        middle = self.to_middle(_joined(coarse, middle))
        change: Tensor = self.change(self.to_fine(_joined(middle, fine)))
        moved = (images + change).clamp(0, 1) - images
        size = moved.square().mean((1, 2, 3), keepdim=True).clamp_min(_TINY).sqrt()
        return images + moved * (self.radius / size).clamp_max(1)


def _block(channels: int, wide: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, wide, 3, padding=1), nn.GroupNorm(1, wide), nn.LeakyReLU()
    )


def _joined(coarse: Tensor, fine: Tensor) -> Tensor:
    """Enlarge a coarse map and join it with a fine one."""
    return torch.cat([F.interpolate(coarse, size=fine.shape[-2:]), fine], 1)

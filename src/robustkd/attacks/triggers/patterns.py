"""What an attacker adds to an image: the same object poisons training data and measures success.

Triggers act on pixels in [0, 1], keep the shape, and never change their input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.core.types import Images

Plane = Float[Tensor, "_ _ _"]
"""Channels, height and width; that two of them agree is for their user to check."""

_MOST_PERIODS = 1000


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise UsageError(f"{name} is {value}; expected above 0 and at most 1")


@dataclass(frozen=True)
class BadNets:
    """A checkerboard in the lower right corner.

    Source: Gu, Dolan-Gavitt, Garg 2017, arXiv 1708.06733. Difference: one pixel off the border,
    so that cropping by one pixel does not cut it.

    Attributes:
        size: Edge of the square in pixels.
    """

    size: int = 3

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"size is {self.size}; expected at least 1 pixel")

    def __call__(self, images: Images) -> Images:
        """Overwrite the corner."""
        height, width = images.shape[2:]
        if self.size + 1 > min(height, width):
            raise UsageError(
                f"size is {self.size}; expected less than the images' {height} x {width} pixels"
            )
        cells = torch.arange(self.size, device=images.device)
        board = ((cells[:, None] + cells) % 2 == 0).to(images.dtype)
        marked = images.clone()
        marked[:, :, -self.size - 1 : -1, -self.size - 1 : -1] = board
        return marked


@dataclass(frozen=True)
class Blend:
    """A fixed noise image mixed into the whole picture.

    Source: Chen, Liu, Li, Lu, Song 2017, arXiv 1712.05526 (its random pattern).

    Attributes:
        alpha: Share of the noise, in (0, 1].
        seed: Of the noise, from 0 to below 2^63.
    """

    alpha: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        _check_share("alpha", self.alpha)
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; expected 0 to below 2^63")

    def __call__(self, images: Images) -> Images:
        """Mix the noise in."""
        random = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(images.shape[1:], generator=random).to(images)
        return torch.lerp(images, noise, self.alpha)


@dataclass(frozen=True)
class SIG:
    """A sinusoidal stripe over the whole picture.

    Source: Barni, Kallas, Tondi 2019, arXiv 1902.11237.

    Attributes:
        delta: Amplitude in pixel units, in (0, 1]; 20/255 in the paper's milder runs.
        frequency: Periods across the width, above 0 and at most 1000.
    """

    delta: float = 40 / 255
    frequency: float = 6.0

    def __post_init__(self) -> None:
        _check_share("delta", self.delta)
        if not 0 < self.frequency <= _MOST_PERIODS:
            raise UsageError(
                f"frequency is {self.frequency}; expected above 0 and at most {_MOST_PERIODS}"
            )

    def __call__(self, images: Images) -> Images:
        """Add the stripe and clip."""
        width = images.shape[3]
        columns = torch.arange(width, device=images.device, dtype=images.dtype)
        stripe = self.delta * torch.sin(2 * math.pi * self.frequency * columns / width)
        return (images + stripe).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class MaskedPattern:
    """``(1 - mask) * image + mask * pattern``: what optimised triggers are made of.

    Attributes:
        mask: C x H x W in [0, 1].
        pattern: C x H x W in [0, 1].
    """

    mask: Plane
    pattern: Plane

    def __post_init__(self) -> None:
        if self.mask.shape != self.pattern.shape:
            raise UsageError(
                f"mask is {tuple(self.mask.shape)} and pattern {tuple(self.pattern.shape)}; "
                "expected equal shapes"
            )
        for name, plane in (("mask", self.mask), ("pattern", self.pattern)):
            if not bool(((plane >= 0) & (plane <= 1)).all()):
                raise UsageError(f"the trigger's {name} leaves [0, 1]")

    def __call__(self, images: Images) -> Images:
        """Mix the pattern in where the mask says so."""
        if images.shape[1:] != self.mask.shape:
            raise UsageError(
                f"the trigger is {tuple(self.mask.shape)}; the images are {tuple(images.shape[1:])}"
            )
        return torch.lerp(images, self.pattern.to(images), self.mask.to(images))

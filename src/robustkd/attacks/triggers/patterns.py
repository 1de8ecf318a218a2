"""Triggers that add a pattern to an image.

The same object poisons training data and measures attack success. Triggers act on pixels in [0, 1],
keep the shape of the images, and never change their input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.core.types import Images
from robustkd.core.validation import (
    check_count,
    check_positive,
    check_share,
    check_whole,
    hold_plain_numbers,
)

Plane = Float[Tensor, "_ _ _"]
"""A tensor of shape C x H x W. The annotation does not check that two planes have equal shapes."""

_MOST_PERIODS = 1000


@dataclass(frozen=True)
class BadNets:
    """A checkerboard in the lower right corner.

    Source: Gu, Dolan-Gavitt, Garg 2017, arXiv 1708.06733. Difference: the square is one pixel away
    from the border, so that cropping by one pixel does not cut it.

    Attributes:
        size: Edge of the square in pixels, at least 1.
    """

    size: int = 3

    def __post_init__(self) -> None:
        check_count(size=self.size)

    def __call__(self, images: Images) -> Images:
        """Return copies of the images with the checkerboard."""
        height, width = images.shape[2:]
        if self.size + 1 > min(height, width):
            raise UsageError(
                f"size is {self.size}; expected less than the edges of the images, {height} x "
                f"{width} pixels"
            )
        cells = torch.arange(self.size, device=images.device)
        board = ((cells[:, None] + cells) % 2 == 0).to(images.dtype)
        marked = images.clone()
        marked[:, :, -self.size - 1 : -1, -self.size - 1 : -1] = board
        return marked


@dataclass(frozen=True)
class Blend:
    """A fixed noise image blended into the whole image.

    Source: Chen, Liu, Li, Lu, Song 2017, arXiv 1712.05526 (its random pattern).

    Attributes:
        alpha: Weight of the noise in the blend, in (0, 1].
        seed: Seed of the noise, at least 0 and below 2^63.
    """

    alpha: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_share(alpha=self.alpha)
        check_whole(seed=self.seed)
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; expected at least 0 and below 2^63")
        hold_plain_numbers(self)

    def __call__(self, images: Images) -> Images:
        """Return the images blended with the noise."""
        random = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(images.shape[1:], generator=random).to(images)
        return torch.lerp(images, noise, self.alpha)


@dataclass(frozen=True)
class SIG:
    """A sinusoidal stripe pattern over the whole image.

    Source: Barni, Kallas, Tondi 2019, arXiv 1902.11237.

    Attributes:
        delta: Amplitude in pixel values, in (0, 1]; 20/255 in the weaker attacks of the paper.
        frequency: Number of periods across the width, above 0 and at most 1000.
    """

    delta: float = 40 / 255
    frequency: float = 6.0

    def __post_init__(self) -> None:
        check_share(delta=self.delta)
        check_positive(frequency=self.frequency)
        if self.frequency > _MOST_PERIODS:
            raise UsageError(
                f"frequency is {self.frequency}; expected at most {_MOST_PERIODS} periods"
            )

    def __call__(self, images: Images) -> Images:
        """Return the images with the stripes added, clipped to [0, 1].

        Raises:
            UsageError: If the stripe is zero on images of this width.
        """
        width = images.shape[3]
        if (2 * self.frequency / width).is_integer():  # the sine is zero at every column
            raise UsageError(
                f"frequency is {self.frequency:g}, whose stripe vanishes on images of {width} "
                "columns; expected another one"
            )
        columns = torch.arange(width, device=images.device, dtype=images.dtype)
        stripe = self.delta * torch.sin(2 * math.pi * self.frequency * columns / width)
        return (images + stripe).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class MaskedPattern:
    """Blend a pattern into images by a mask: ``(1 - mask) * image + mask * pattern``.

    Most optimised triggers have this form.

    Attributes:
        mask: Opacity of the pattern, C x H x W in [0, 1].
        pattern: Pixels of the pattern, C x H x W in [0, 1].
    """

    mask: Plane
    pattern: Plane

    def __post_init__(self) -> None:
        if self.mask.shape != self.pattern.shape:
            raise UsageError(
                f"mask has shape {tuple(self.mask.shape)} and pattern has shape "
                f"{tuple(self.pattern.shape)}; expected equal shapes"
            )
        for name, plane in (("mask", self.mask), ("pattern", self.pattern)):
            if not bool(((plane >= 0) & (plane <= 1)).all()):
                raise UsageError(
                    f"the trigger's {name} has values from {float(plane.min()):g} to "
                    f"{float(plane.max()):g}; expected values in [0, 1]"
                )

    def __call__(self, images: Images) -> Images:
        """Return the images with the pattern blended in."""
        if images.shape[1:] != self.mask.shape:
            raise UsageError(
                f"the trigger has shape {tuple(self.mask.shape)}; expected the shape of the "
                f"images, {tuple(images.shape[1:])}"
            )
        return torch.lerp(images, self.pattern.to(images), self.mask.to(images))

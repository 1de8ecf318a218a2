"""The trigger of WaNet: a smooth warp of the whole image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.core.types import Images
from robustkd.core.validation import (
    check_count,
    check_not_negative,
    check_whole,
    hold_plain_numbers,
)
from robustkd.data.transformations import displace

_FINEST = 1024
"""Largest number of points along an edge of the control grid."""
_STRONGEST = 1e6
"""Largest strength in pixels, so that all displacements are finite."""


@dataclass(frozen=True)
class Warp:
    r"""Warp all images along the same smooth displacement field.

    .. math:: x'(p) = x(p + M(p)), \quad
        M = \mathrm{bicubic}_{h \times w}\left(s\, U / \mathrm{mean}|U|\right), \quad
        U \sim \mathcal{U}[-1, 1]^{2 \times k \times k}

    Images are sampled bilinearly; positions outside the image are clamped to its border.

    Source: Nguyen and Tran, *WaNet: Imperceptible Warping-based Backdoor Attack*, ICLR 2021, arXiv
    2102.10369. Difference: ``strength`` is in pixels. In the paper, coordinates are in [-1, 1], so
    that its s = 0.5 is 0.25 pixels.

    Attributes:
        grid: Number k of control points along an edge of the field, from 2 to 1024 and at most the
            number of pixels along the shorter edge of the images.
        strength: Mean displacement s of the control points along each axis in pixels, from 0 to
            10^6; with 0, images are unchanged.
        seed: Seed of the field, at least 0 and below 2^63.
    """

    grid: int = 4
    strength: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(least=2, grid=self.grid)
        if self.grid > _FINEST:
            raise UsageError(f"grid is {self.grid}; expected at most {_FINEST} points")
        check_not_negative(strength=self.strength)
        if self.strength > _STRONGEST:
            raise UsageError(f"strength is {self.strength}; expected at most {_STRONGEST:g} pixels")
        check_whole(seed=self.seed)
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; expected at least 0 and below 2^63")
        hold_plain_numbers(self)

    def field(self, height: int, width: int) -> Float[Tensor, "height width 2"]:
        """Return the displacement of every pixel in pixels, along columns and then along rows.

        Raises:
            UsageError: If the control grid is finer than the image.
        """
        if self.grid > min(height, width):
            raise UsageError(
                f"grid is {self.grid}; expected at most the edges of the images, {height} x "
                f"{width} pixels"
            )
        random = torch.Generator().manual_seed(self.seed)
        control = 2 * torch.rand(1, 2, self.grid, self.grid, generator=random) - 1
        control = self.strength * control / control.abs().mean()
        smooth = F.interpolate(control, (height, width), mode="bicubic", align_corners=True)
        return smooth[0].permute(1, 2, 0)

    def __call__(self, images: Images) -> Images:
        """Return the warped images."""
        field = self.field(*images.shape[2:]).to(images)
        return displace(images, field[None])

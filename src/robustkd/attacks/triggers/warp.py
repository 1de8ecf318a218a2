"""A smooth warp of the whole picture: WaNet's trigger, which adds nothing to a pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.core.types import Images
from robustkd.data.transformations import displace

_FINEST = 1024
"""Points along an edge of the control grid: finer than any warp that is still smooth."""


@dataclass(frozen=True)
class Warp:
    r"""Every pixel is read a little way off, along one smooth field that all images share.

    .. math:: x'(p) = x(p + M(p)), \quad
        M = \mathrm{bicubic}_{h \times w}\left(s\, U / \mathrm{mean}|U|\right), \quad
        U \sim \mathcal{U}[-1, 1]^{2 \times k \times k}

    with positions that would leave the picture held at its border, and bilinear reading.

    Source: Nguyen and Tran, *WaNet: Imperceptible Warping-based Backdoor Attack*, ICLR 2021, arXiv
    2102.10369. Difference: ``strength`` is in pixels; the paper's s = 0.5 counts halves of a pixel,
    as its coordinates run over [-1, 1].

    Attributes:
        grid: Edge k of the field's control grid, from 2 to 1024 and at most that of the picture.
        strength: Mean shift s of the control points along each axis, in pixels, at least 0; 0 is
            no warp.
        seed: Of the field, from 0 to below 2^63.
    """

    grid: int = 4
    strength: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.grid < 2:
            raise UsageError(f"grid is {self.grid}; expected at least 2 points")
        if self.grid > _FINEST:
            raise UsageError(f"grid is {self.grid}; expected at most {_FINEST} points")
        if not 0 <= self.strength < float("inf"):
            raise UsageError(f"strength is {self.strength}; expected at least 0 pixels")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; expected 0 to below 2^63")

    def field(self, height: int, width: int) -> Float[Tensor, "height width 2"]:
        """The shift of every pixel in pixels, columns before rows.

        Raises:
            UsageError: If the control grid is finer than the picture.
        """
        if self.grid > min(height, width):
            raise UsageError(
                f"grid is {self.grid}; expected at most the images' {height} x {width} pixels"
            )
        random = torch.Generator().manual_seed(self.seed)
        control = 2 * torch.rand(1, 2, self.grid, self.grid, generator=random) - 1
        control = self.strength * control / control.abs().mean()
        smooth = F.interpolate(control, (height, width), mode="bicubic", align_corners=True)
        return smooth[0].permute(1, 2, 0)

    def __call__(self, images: Images) -> Images:
        """Read every image along the field."""
        field = self.field(*images.shape[2:]).to(images)
        return displace(images, field[None])

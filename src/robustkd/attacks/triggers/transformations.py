"""Triggers that transform the whole image: warps, tone curves, lighting, filters and the like.

Each trigger is a frozen dataclass with the parameters of one function of
:mod:`robustkd.data.transformations`. Parameters of zero give the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.core.types import Images, Trigger
from robustkd.data import transformations

Parameters: TypeAlias = Float[Tensor, "_ _ _"]


@dataclass(frozen=True, eq=False)
class Flow:
    """Warp images along a smooth field.

    Attributes:
        control: Displacements of the control points in pixels, 2 x k x k; the first channel is the
            displacement along columns, the second along rows.
    """

    control: Parameters

    def __post_init__(self) -> None:
        _check(self.control, "control", "2 x k x k", self.control.shape[0] == 2)

    def __call__(self, images: Images) -> Images:
        """Warp the images."""
        return transformations.flow(images, self.control[None].to(images))


@dataclass(frozen=True, eq=False)
class Affine:
    """Rotate, shear, scale and translate images.

    Attributes:
        matrix: Difference from the identity matrix, 1 x 2 x 3, in coordinates from -1 to 1.
    """

    matrix: Parameters

    def __post_init__(self) -> None:
        _check(self.matrix, "matrix", "1 x 2 x 3", self.matrix.shape == (1, 2, 3))

    def __call__(self, images: Images) -> Images:
        """Transform the images."""
        return transformations.affine(images, self.matrix.to(images))


@dataclass(frozen=True, eq=False)
class ToneCurve:
    """Change every pixel by a piecewise linear function of its value.

    Attributes:
        knots: Changes at k equally spaced pixel values, 1 x c x k; c is 1 or the number of
            channels.
    """

    knots: Parameters

    def __post_init__(self) -> None:
        knots = self.knots
        _check(knots, "knots", "1 x c x k", knots.shape[0] == 1 and knots.shape[2] > 1)

    def __call__(self, images: Images) -> Images:
        """Change the pixel values."""
        if self.knots.shape[1] not in (1, images.shape[1]):
            raise UsageError(
                f"the trigger has {self.knots.shape[1]} curves; expected 1 or the number of "
                f"channels of the images, {images.shape[1]}"
            )
        return transformations.tone_curve(images, self.knots.to(images))


@dataclass(frozen=True, eq=False)
class LightField:
    """Change brightness by a smooth field of gains and offsets.

    Attributes:
        control: Gain and offset at the control points, 2 x k x k.
    """

    control: Parameters

    def __post_init__(self) -> None:
        _check(self.control, "control", "2 x k x k", self.control.shape[0] == 2)

    def __call__(self, images: Images) -> Images:
        """Change the brightness of the images."""
        return transformations.light_field(images, self.control[None].to(images))


@dataclass(frozen=True, eq=False)
class ColourMatrix:
    """Mix the colour channels and add a constant colour.

    Attributes:
        matrix: Difference from the identity matrix, 1 x C x (C + 1); the last column is the
            constant colour.
    """

    matrix: Parameters

    def __post_init__(self) -> None:
        _, rows, columns = self.matrix.shape
        fits = len(self.matrix) == 1 and columns == rows + 1
        _check(self.matrix, "matrix", "1 x C x (C + 1)", fits)

    def __call__(self, images: Images) -> Images:
        """Mix the channels."""
        if self.matrix.shape[1] != images.shape[1]:
            raise UsageError(
                f"the trigger has {self.matrix.shape[1]} channels; expected the number of channels "
                f"of the images, {images.shape[1]}"
            )
        return transformations.colour_matrix(images, self.matrix.to(images))


@dataclass(frozen=True, eq=False)
class Filter:
    """Filter images by a small kernel.

    Attributes:
        kernel: Difference from the identity kernel, 1 x k x k with odd k.
    """

    kernel: Parameters

    def __post_init__(self) -> None:
        _, rows, columns = self.kernel.shape
        fits = len(self.kernel) == 1 and rows == columns and rows % 2 == 1
        _check(self.kernel, "kernel", "1 x k x k with odd k", fits)

    def __call__(self, images: Images) -> Images:
        """Filter the images."""
        if self.kernel.shape[1] // 2 >= min(images.shape[2:]):
            raise UsageError(
                f"the trigger's kernel is {self.kernel.shape[1]} pixels wide; expected less than "
                f"twice the edges of the images, {images.shape[2]} x {images.shape[3]}"
            )
        return transformations.filtered(images, self.kernel.to(images))


@dataclass(frozen=True, eq=False)
class LowFrequency:
    """Add a smooth pattern.

    Attributes:
        control: Values that are added at the control points, C x k x k.
    """

    control: Parameters

    def __call__(self, images: Images) -> Images:
        """Add the pattern."""
        if self.control.shape[0] != images.shape[1]:
            raise UsageError(
                f"the trigger has {self.control.shape[0]} channels; expected the number of "
                f"channels of the images, {images.shape[1]}"
            )
        return transformations.low_frequency(images, self.control[None].to(images))


@dataclass(frozen=True)
class Composition:
    """Composition of two triggers.

    Attributes:
        first: Trigger that is applied to the images.
        second: Trigger that is applied to the result of the first.
    """

    first: Trigger
    second: Trigger

    def __call__(self, images: Images) -> Images:
        """Apply both triggers in order."""
        return self.second(self.first(images))


def _check(parameters: Tensor, name: str, expected: str, fits: bool) -> None:
    if not fits:
        raise UsageError(
            f"the trigger's {name} has shape {tuple(parameters.shape)}; expected {expected}"
        )

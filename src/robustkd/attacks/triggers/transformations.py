"""Triggers that transform the whole image: warps, tone curves, lighting, filters and the like.

Each trigger is a frozen dataclass with the parameters of one function of
:mod:`robustkd.data.transformations`. Parameters of zero give the identity. The number of parameters
is bounded, since time and memory grow with it and a trigger can come from a file of a stranger.
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

_FINEST = 16
"""Largest number of control points along an edge; the memory grows with its square."""
_MOST_KNOTS = 64
_WIDEST = 31
"""Largest edge of a kernel in pixels."""
_MOST_CHANNELS = 64


@dataclass(frozen=True, eq=False)
class Flow:
    """Warp images along a smooth field.

    Attributes:
        control: Displacements of the control points in pixels, 2 x k x k with k up to 16; the first
            channel is the displacement along columns, the second along rows.
    """

    control: Parameters

    def __post_init__(self) -> None:
        _check_control(self.control, channels=2)

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
        knots: Changes at k equally spaced pixel values, 1 x c x k with k from 2 to 64; c is 1 or
            the number of channels.
    """

    knots: Parameters

    def __post_init__(self) -> None:
        one, curves, count = _sizes(self.knots)
        fits = one == 1 and 1 <= curves <= _MOST_CHANNELS and 2 <= count <= _MOST_KNOTS
        expected = f"1 x c x k with c from 1 to {_MOST_CHANNELS} and k from 2 to {_MOST_KNOTS}"
        _check(self.knots, "knots", expected, fits)

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
        control: Gain and offset at the control points, 2 x k x k with k up to 16.
    """

    control: Parameters

    def __post_init__(self) -> None:
        _check_control(self.control, channels=2)

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
        one, rows, columns = _sizes(self.matrix)
        fits = one == 1 and 1 <= rows <= _MOST_CHANNELS and columns == rows + 1
        expected = f"1 x C x (C + 1) with C from 1 to {_MOST_CHANNELS}"
        _check(self.matrix, "matrix", expected, fits)

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
        kernel: Difference from the identity kernel, 1 x k x k with odd k up to 31.
    """

    kernel: Parameters

    def __post_init__(self) -> None:
        one, rows, columns = _sizes(self.kernel)
        fits = one == 1 and rows == columns and rows % 2 == 1 and rows <= _WIDEST
        _check(self.kernel, "kernel", f"1 x k x k with odd k up to {_WIDEST}", fits)

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
        control: Values that are added at the control points, C x k x k with k up to 16.
    """

    control: Parameters

    def __post_init__(self) -> None:
        _check_control(self.control, channels=None)

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


def _sizes(parameters: Tensor) -> tuple[int, int, int]:
    """Return the three sizes of a tensor; zeros, which fit nothing, for another rank."""
    if parameters.ndim != 3:
        return 0, 0, 0
    first, rows, columns = parameters.shape
    return first, rows, columns


def _check_control(control: Tensor, *, channels: int | None) -> None:
    """Check the shape of control points; None for any number of channels."""
    first, rows, columns = _sizes(control)
    fits = first == channels if channels is not None else 1 <= first <= _MOST_CHANNELS
    fits = fits and rows == columns and 1 <= rows <= _FINEST
    few = "C" if channels is None else channels
    most = f"C up to {_MOST_CHANNELS} and " if channels is None else ""
    _check(control, "control", f"{few} x k x k with {most}k from 1 to {_FINEST}", fits)


def _check(parameters: Tensor, name: str, expected: str, fits: bool) -> None:
    if not fits:
        raise UsageError(
            f"the trigger's {name} has shape {tuple(parameters.shape)}; expected {expected}"
        )

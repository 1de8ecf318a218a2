r"""Tone curves, uneven light and a filter, added up: one change of colours for each class.

.. math:: x'_c = \mathrm{clamp}\big(x_c + b \tanh(t_c(x_c) + g_c x_c + o_c
    + s\, (K * x)_c), 0, 1\big)

with a piecewise linear tone curve :math:`t_c` for each channel, smooth fields of gain :math:`g` and
offset :math:`o`, and a 5 x 5 kernel :math:`K` over all channels. The sum is linear in its
parameters, so a few steps of the gradient's sign find the strongest change. A generator
(:mod:`robustkd.student.families.generator`) has more freedom and needs more steps: on natural
images it finds other changes that lead to the same class, and misses a backdoor that a tone curve
triggers.

Sources of the parts: Laidlaw and Feizi 2019, arXiv 1906.00001 (functions of the pixel values). The
sum with a common bound is ours.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkd.core.types import Images
from robustkd.data.transformations import convolved, smooth
from robustkd.student.families.bounded import Bounded

_KNOTS = 8
_KERNEL = 5
_CELLS = 4
_STEP = 0.05
_START = 0.5
"""Largest absolute value of the initial parameters."""
_SCALE = 0.5
"""Weight of the kernel's response, for one channel."""


def photometric(classes: int, channels: int, change: float, random: torch.Generator) -> Bounded:
    """Make one change of colours for each class.

    Args:
        classes: Number of classes.
        channels: Number of channels of the images.
        change: Largest change of a pixel, in (0, 1].
        random: Generator of the initial parameters.
    """
    transform = partial(_transform, change=change)
    shape = (1, 1, sum(_sizes(channels)))
    return Bounded(classes, shape, 1.0, transform, random, step=_STEP, start=_START)


def _transform(images: Images, parameters: Tensor, *, change: float) -> Images:
    return recolour(images, parameters.flatten(1), change)


def recolour(images: Images, parameters: Tensor, change: float) -> Images:
    """Apply one change of colours to each image.

    Args:
        images: N x C x H x W in [0, 1].
        parameters: N x P parameters in [-1, 1]: curves, gains, offsets and kernels.
        change: Largest change of a pixel.
    """
    n, channels, height, width = images.shape
    curves, fields, kernels = torch.split(parameters, _sizes(channels), dim=1)
    field = smooth(fields.reshape(n, 2 * channels, _CELLS, _CELLS), (height, width))
    padded = F.pad(images, (_KERNEL // 2,) * 4, mode="replicate")
    kernels = kernels.reshape(n, channels, channels, _KERNEL, _KERNEL) * (_SCALE / channels)
    total = convolved(padded, kernels) + images * field[:, :channels] + field[:, channels:]
    total = total + _curve(images, curves.reshape(n, channels, _KNOTS))
    return (images + change * total.tanh()).clamp(0, 1)


def _curve(images: Images, knots: Tensor) -> Tensor:
    """Interpolate the curves linearly at the values of the pixels, for each channel."""
    place = images.flatten(2) * (_KNOTS - 1)
    lower = place.floor().clamp(0, _KNOTS - 2)
    left = knots.gather(2, lower.long())
    right = knots.gather(2, lower.long() + 1)
    return torch.lerp(left, right, place - lower).view_as(images)


def _sizes(channels: int) -> list[int]:
    return [channels * _KNOTS, 2 * channels * _CELLS**2, channels**2 * _KERNEL**2]

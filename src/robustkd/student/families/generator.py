r"""A small network for each class that changes colours, light and texture.

.. math:: x'_c = \mathrm{clamp}\Big(x_c + b \tanh\big(\sum_h v_{ch}\,
    \mathrm{relu}(K_h * x + F_h)\big), 0, 1\Big)

with a 5 x 5 kernel :math:`K_h` over all channels, and a smooth field :math:`F_h` over the image in
place of a bias, for each hidden unit h. Tone curves, colour changes, uneven light, filters and
smooth additions are close to special cases, so a student that resists the generator resists many
changes that it was never trained against. The generator does not move pixels: geometric changes
need a family of their own.

The family is ours. Related work: Poursaeed et al. 2018, arXiv 1712.02328, whose generator network
is trained against a fixed classifier and makes one additive perturbation.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkd.core.types import Images
from robustkd.data.transformations import convolved, smooth
from robustkd.student.families.bounded import Bounded

_HIDDEN = 12
_KERNEL = 5
_CELLS = 4
_STEP = 0.05
"""Step size; with the step size of other families, generators are too strong for small students."""
_START = 0.5
"""Largest absolute value of the initial parameters."""
_SCALE = 0.5
"""Weight of the kernels' responses, for one channel."""


def generator(
    classes: int, channels: int, change: float, random: torch.Generator, hidden: int = _HIDDEN
) -> Bounded:
    """Make one generator for each class.

    Args:
        classes: Number of classes.
        channels: Number of channels of the images.
        change: Largest change of a pixel, in (0, 1].
        random: Generator of the initial parameters.
        hidden: Number of hidden units.
    """
    transform = partial(_transform, change=change, hidden=hidden)
    shape = (1, 1, sum(_sizes(channels, hidden)))
    return Bounded(classes, shape, 1.0, transform, random, step=_STEP, start=_START)


def _transform(images: Images, parameters: Tensor, *, change: float, hidden: int) -> Images:
    return generate(images, parameters.flatten(1), change, hidden)


def generate(images: Images, parameters: Tensor, change: float, hidden: int) -> Images:
    """Apply one generator to each image.

    Args:
        images: N x C x H x W in [0, 1].
        parameters: N x P parameters in [-1, 1]: kernels, fields and output weights.
        change: Largest change of a pixel.
        hidden: Number of hidden units.
    """
    n, channels, height, width = images.shape
    kernels, fields, weights = torch.split(parameters, _sizes(channels, hidden), dim=1)
    kernels = kernels.reshape(n, hidden, channels, _KERNEL, _KERNEL) * (_SCALE / channels)
    field = smooth(fields.reshape(n, hidden, _CELLS, _CELLS), (height, width))
    padded = F.pad(images, (_KERNEL // 2,) * 4, mode="replicate")
    hidden_units = (convolved(padded, kernels) + field).relu()
    output = weights.reshape(n, channels, hidden) @ hidden_units.flatten(2)
    return (images + change * output.view(n, channels, height, width).tanh()).clamp(0, 1)


def _sizes(channels: int, hidden: int) -> list[int]:
    return [hidden * channels * _KERNEL**2, hidden * _CELLS**2, channels * hidden]

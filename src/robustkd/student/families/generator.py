r"""A small network for each class that changes colours, light and texture.

.. math:: x' = \mathrm{clamp}(x + b \tanh(W_2 * \mathrm{relu}(W_1 * [x, u, v] + b_1) + b_2), 0, 1)

with the coordinates u and v of every pixel, a 5 x 5 kernel :math:`W_1`, and a 3 x 3 kernel
:math:`W_2`. Tone curves, colour changes, uneven light, filters and smooth additions are close to
special cases, so a student that resists the generator resists many changes that it was not trained
on. The generator does not move pixels: geometric changes need a family of their own.

The family is ours. Related work: Poursaeed et al. 2018, arXiv 1712.02328, whose generator network
is trained against a fixed classifier and makes one additive perturbation.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkd.core.types import Images
from robustkd.student.families.bounded import Bounded

_HIDDEN = 8
_FIRST, _SECOND = 5, 3
_GAIN = 2.0
"""Bound of the kernels, relative to the usual uniform initialisation."""


def generator(
    classes: int, channels: int, change: float, random: torch.Generator, hidden: int = _HIDDEN
) -> Bounded:
    """One generator for each class.

    Args:
        classes: Number of classes.
        channels: Channels of the images.
        change: Largest change of a pixel, in (0, 1].
        random: Generator of the initial weights.
        hidden: Channels between the two layers.
    """
    sizes = _sizes(channels, hidden)

    def transform(images: Images, parameters: Tensor) -> Images:
        return generate(images, parameters.flatten(1), change, hidden)

    return Bounded(classes, (1, 1, sum(sizes)), 1.0, transform, random)


def generate(images: Images, parameters: Tensor, change: float, hidden: int) -> Images:
    """Apply one generator to each image.

    Args:
        images: N x C x H x W in [0, 1].
        parameters: N x P weights in [-1, 1], of both kernels and both biases.
        change: Largest change of a pixel.
        hidden: Channels between the two layers.
    """
    n, channels, height, width = images.shape
    first, bias, second, shift = torch.split(parameters, _sizes(channels, hidden), dim=1)
    inputs = channels + 2
    first = first.reshape(n * hidden, inputs, _FIRST, _FIRST) * _scale(inputs * _FIRST**2)
    second = second.reshape(n * channels, hidden, _SECOND, _SECOND) * _scale(hidden * _SECOND**2)
    rows, columns = (torch.linspace(-1, 1, size, device=images.device) for size in (height, width))
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    seen = torch.cat([images, u.expand(n, 1, -1, -1), v.expand(n, 1, -1, -1)], dim=1)
    # Grouped convolution over all images: each image is a group of channels.
    flat = seen.reshape(1, n * inputs, height, width)
    hidden_layer = F.conv2d(flat, first, bias.reshape(-1), padding=_FIRST // 2, groups=n)
    output = F.conv2d(
        hidden_layer.relu(), second, shift.reshape(-1), padding=_SECOND // 2, groups=n
    )
    return (images + change * output.view(n, channels, height, width).tanh()).clamp(0, 1)


def _sizes(channels: int, hidden: int) -> list[int]:
    inputs = channels + 2
    return [hidden * inputs * _FIRST**2, hidden, channels * hidden * _SECOND**2, channels]


def _scale(inputs: int) -> float:
    return _GAIN * math.sqrt(3 / inputs)

"""MobileNets for images of any size.

Sources: Howard et al., *MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
Applications*, 2017, arXiv 1704.04861; Sandler et al., *MobileNetV2: Inverted Residuals and Linear
Bottlenecks*, CVPR 2018, arXiv 1801.04381. MobileNetV2 is built by torchvision, so that weights of
torchvision fit. Differences for images below 96 pixels: some strides are 1, since the papers'
factor of 32 would reduce a small image to a single position, and there is no dropout.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from robustkd.core.errors import UsageError

# Expansion, channels, blocks and stride of each group, as in table 2 of the paper.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Channels and stride of each depthwise separable convolution, as in table 1 of the first paper.
_SEPARABLE = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    *[(512, 1)] * 5, (1024, 2), (1024, 1),
)  # fmt: skip
# For smaller images, first the stem and then the last strided group have stride 1. Images of 28 to
# 47 pixels then give 4 x 4 features or more, at half the cost of early groups at full resolution.
_WIDEST = 4
_NO_STEM_STRIDE_BELOW = 96
_NO_LAST_STRIDE_BELOW = 48


def mobilenet_v2(
    width: float | int = 1.0, *, channels: int, classes: int, size: tuple[int, int]
) -> nn.Module:
    """MobileNetV2 with fresh weights.

    Args:
        width: Factor on the numbers of channels, above 0 and at most 4; they are rounded to
            multiples of 8.
        channels: Number of input channels, 1 or 3.
        classes: Number of logits.
        size: Height and width of the images in pixels. The total stride is 32, as in the paper,
            for images of at least 96 pixels, 16 for at least 48 pixels, and 8 below.

    Raises:
        UsageError: If the width is out of range.
    """
    _check_width("MobileNetV2", width)
    from torchvision.models import MobileNetV2

    small = min(size) < _NO_STEM_STRIDE_BELOW
    groups = [list(group) for group in _GROUPS]
    if min(size) < _NO_LAST_STRIDE_BELOW:
        groups[5][3] = 1
    network: nn.Module = MobileNetV2(
        num_classes=classes,
        width_mult=float(width),
        inverted_residual_setting=groups,
        dropout=0.0 if small else 0.2,
    )
    stem: Any = network.get_submodule("features.0")
    stem[0] = nn.Conv2d(
        channels, stem[0].out_channels, 3, stride=1 if small else 2, padding=1, bias=False
    )
    nn.init.kaiming_normal_(stem[0].weight, mode="fan_out")
    return network


def _activated(inputs: int, outputs: int, size: int, stride: int, groups: int) -> nn.Sequential:
    convolution = nn.Conv2d(
        inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def mobilenet_v1(
    width: float | int = 1.0, *, channels: int, classes: int, size: tuple[int, int]
) -> nn.Module:
    """MobileNetV1 with fresh weights; arguments and errors are those of :func:`mobilenet_v2`.

    The total stride is 32 for images of at least 96 pixels, 16 for at least 48 pixels, and 8 below.
    """
    _check_width("MobileNetV1", width)
    small, smallest = min(size) < _NO_STEM_STRIDE_BELOW, min(size) < _NO_LAST_STRIDE_BELOW
    inputs = max(8, int(32 * width))
    layers = [_activated(channels, inputs, 3, 1 if small else 2, 1)]
    for number, (full, stride) in enumerate(_SEPARABLE):
        last = number == len(_SEPARABLE) - 2
        layers.append(_activated(inputs, inputs, 3, 1 if last and smallest else stride, inputs))
        outputs = max(8, int(full * width))
        layers.append(_activated(inputs, outputs, 1, 1, 1))
        inputs = outputs
    return nn.Sequential(
        nn.Sequential(*layers),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inputs, classes),
    )


def _check_width(name: str, width: float | int) -> None:
    if not 0 < width <= _WIDEST:
        raise UsageError(f"{name} width is {width}; expected above 0 and at most {_WIDEST}")

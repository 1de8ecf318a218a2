"""MobileNetV2 for images of any size.

Source: Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, CVPR 2018,
arXiv 1801.04381; the network itself is torchvision's, so that its weights fit. Differences, for
images below 96 pixels: the strides, since 32 of the paper's would leave nothing of a small image,
and no dropout.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from robustkd.errors import UsageError

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
# The stem loses its stride first, then the last group its own: features of 4 x 4 are left of 28 to
# 47 pixels, at half the cost of keeping the early groups at full size.
_NO_STEM_STRIDE_BELOW = 96
_NO_LAST_STRIDE_BELOW = 48


def mobilenet_v2(
    width: float | int = 1.0, *, channels: int, classes: int, size: tuple[int, int]
) -> nn.Module:
    """MobileNetV2 with fresh weights.

    Args:
        width: Factor on all channels, above 0 and at most 4; they stay multiples of 8.
        channels: Of the input, 1 or 3.
        classes: Number of logits.
        size: Height and width of the images in pixels: from 96 on, features shrink by 32 as in
            the paper; from 48 on by 16; below by 8.

    Raises:
        UsageError: If the width is out of range.
    """
    if not 0 < width <= 4:
        raise UsageError(f"MobileNetV2 width is {width}; expected above 0 and at most 4")
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

"""Pyramidal residual networks, whose number of channels grows with every block.

Source: Han, Kim and Kim, *Deep Pyramidal Residual Networks*, CVPR 2017, arXiv 1610.02915, with
additive widening, blocks without the first ReLU and with a BatchNorm at their end, and shortcuts
without parameters. Differences: widths are rounded to the nearest integer, as in the authors' code
(the paper rounds them down); one or three input channels; global average pooling, for any image
size.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from robustkd.core.errors import UsageError

_STEM = 16
_EXPANSION = 4


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class _Block(nn.Module):
    """BatchNorm before and after every convolution, ReLU before all convolutions but the first."""

    def __init__(self, inputs: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * (_EXPANSION if bottleneck else 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(width)
        self.relu = nn.ModuleList(nn.ReLU() for _ in range(1 + bottleneck))
        if bottleneck:
            self.conv1 = _convolution(inputs, width, 1)
            self.conv2 = _convolution(width, width, 3, stride)
            self.bn3 = nn.BatchNorm2d(width)
            self.conv3 = _convolution(width, outputs, 1)
            self.bn4 = nn.BatchNorm2d(outputs)
        else:
            self.conv1 = _convolution(inputs, width, 3, stride)
            self.conv2 = _convolution(width, outputs, 3)
            self.bn3 = nn.BatchNorm2d(outputs)
        self.bottleneck, self.added = bottleneck, outputs - inputs
        # With ceil_mode, the last row of an odd size is kept, as by the strided convolution.
        self.shortcut = nn.Identity() if stride == 1 else nn.AvgPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.conv1(self.bn1(x))
        residual = self.bn3(self.conv2(self.relu[0](self.bn2(residual))))
        if self.bottleneck:
            residual = self.bn4(self.conv3(self.relu[1](residual)))
        return residual + nn.functional.pad(self.shortcut(x), (0, 0, 0, 0, 0, self.added))


class PyramidNet(nn.Module):
    """PyramidNet-depth-alpha for small images.

    Args:
        depth: Number of layers: 6 n + 2 with n >= 1 basic blocks per group, or 9 n + 2 with n
            bottleneck blocks per group.
        alpha: Number of channels that are added over all blocks, at least 1.
        bottleneck: If True, blocks are 1x1, 3x3 and 1x1 convolutions whose output has four times
            as many channels.
        channels: Number of input channels, 1 or 3.
        classes: Number of logits.

    Raises:
        UsageError: If the depth has another form, or alpha is below 1.
    """

    def __init__(
        self, depth: int, alpha: int, *, bottleneck: bool, channels: int, classes: int
    ) -> None:
        layers = 9 if bottleneck else 6
        if depth < layers + 2 or (depth - 2) % layers:
            kind = "bottleneck" if bottleneck else "basic"
            raise UsageError(
                f"PyramidNet depth is {depth}; expected {layers} n + 2 with n >= 1 for {kind} "
                f"blocks: {layers + 2}, {2 * layers + 2}, {3 * layers + 2}, ..."
            )
        if alpha < 1:
            raise UsageError(f"PyramidNet alpha is {alpha}; expected at least 1")
        super().__init__()
        blocks = (depth - 2) // layers
        widths = [_STEM + round(alpha * k / (3 * blocks)) for k in range(3 * blocks + 1)]
        expansion = _EXPANSION if bottleneck else 1
        made = [
            _Block(
                inputs * (expansion if index else 1),
                width,
                stride=2 if index in (blocks, 2 * blocks) else 1,
                bottleneck=bottleneck,
            )
            for index, (inputs, width) in enumerate(pairwise(widths))
        ]
        self.conv1 = _convolution(channels, _STEM, 3)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*made[group * blocks : (group + 1) * blocks]) for group in range(3)
        )
        self.bn_final = nn.BatchNorm2d(widths[-1] * expansion)
        self.relu_final = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1] * expansion, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised images."""
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)))))
        logits: Tensor = self.fc(self.pool(self.relu_final(self.bn_final(x))).flatten(1))
        return logits

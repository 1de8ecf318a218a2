"""Wide residual networks with pre-activation blocks.

Source: Zagoruyko and Komodakis, *Wide Residual Networks*, BMVC 2016, arXiv 1605.07146.
Differences: no dropout; global average pooling, for any image size of at least 4 x 4 pixels; one or
three input channels. No activation works in place, so that features before ReLU can be read.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from robustkd.core.errors import UsageError

_STEM = 16


class _Block(nn.Module):
    """Twice BatchNorm, ReLU and 3x3 convolution; a 1x1 shortcut convolution if shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        residual: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        # The projection takes the activated input, as in the paper's code.
        return residual + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """WRN-depth-width for small images.

    Args:
        depth: Number of layers, 6 n + 4 with n >= 1 blocks per group: 10, 16, 22, 28, ...
        width: Factor on the 16, 32 and 64 channels of the three groups, at least 1.
        channels: Number of input channels, 1 or 3.
        classes: Number of logits.

    Raises:
        UsageError: If the depth has another form, or the width is below 1.
    """

    def __init__(self, depth: int, width: int, *, channels: int, classes: int) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise UsageError(
                f"WRN depth is {depth}; expected 6 n + 4 with n >= 1: 10, 16, 22, 28, ..."
            )
        if width < 1:
            raise UsageError(f"WRN width is {width}; expected at least 1")
        super().__init__()
        blocks = (depth - 4) // 6
        widths = (_STEM, 16 * width, 32 * width, 64 * width)
        self.stem = nn.Conv2d(channels, _STEM, 3, padding=1, bias=False)
        self.groups = nn.Sequential(
            *(
                nn.Sequential(
                    _Block(inputs, outputs, stride=1 if group == 0 else 2),
                    *(_Block(outputs, outputs, stride=1) for _ in range(blocks - 1)),
                )
                for group, (inputs, outputs) in enumerate(pairwise(widths))
            )
        )
        self.bn = nn.BatchNorm2d(widths[-1])
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised images."""
        x = self.relu(self.bn(self.groups(self.stem(x))))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits

"""Residual networks: those of 6 n + 2 layers for small images, and ResNet-18 to 152.

Source: He, Zhang, Ren and Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016,
arXiv 1512.03385.

The networks of 6 n + 2 layers are those of section 4.2, with shortcuts of option A (subsampled,
with zeros in the new channels). Differences: one or three input channels; any image size; the last
ReLU of a block is the first operation of the next block, which computes the same function, but
allows the output of a block to be read before ReLU.

ResNet-18 to 152 are those of table 1. They are built by torchvision, so that weights of torchvision
fit. For images below 96 pixels, the stem is a 3x3 convolution of stride 1 without pooling, as is
usual on CIFAR.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from robustkd.core.errors import UsageError

_WIDTHS = (16, 16, 32, 64)
_SMALL = 96


class _Block(nn.Module):
    """Two 3x3 convolutions with a shortcut without parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(x)
        residual: Tensor = self.bn2(self.conv2(self.relu2(self.bn1(self.conv1(x)))))
        before = self.added // 2
        padding = (0, 0, 0, 0, before, self.added - before)
        return residual + nn.functional.pad(x[:, :, :: self.stride, :: self.stride], padding)


class SmallResNet(nn.Module):
    """ResNet-depth for small images.

    Args:
        depth: Number of layers, 6 n + 2 with n >= 1 blocks per group: 8, 14, 20, 32, 44, 56, ...
        channels: Number of input channels, 1 or 3.
        classes: Number of logits.

    Raises:
        UsageError: If the depth has another form.
    """

    def __init__(self, depth: int, *, channels: int, classes: int) -> None:
        if depth < 8 or (depth - 2) % 6:
            raise UsageError(
                f"ResNet depth is {depth}; expected 6 n + 2 with n >= 1: 8, 14, 20, 32, ..."
            )
        super().__init__()
        self.conv1 = nn.Conv2d(channels, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                _Block(inputs, outputs, stride=1 if group == 0 else 2),
                *(_Block(outputs, outputs, stride=1) for _ in range((depth - 2) // 6 - 1)),
            )
            for group, (inputs, outputs) in enumerate(pairwise(_WIDTHS))
        )
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(_WIDTHS[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised images."""
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)))))
        logits: Tensor = self.fc(self.pool(self.relu(x)).flatten(1))
        return logits


def large_resnet(depth: int, *, channels: int, classes: int, size: tuple[int, int]) -> nn.Module:
    """ResNet-18, 34, 50, 101 or 152 with fresh weights.

    Args:
        depth: Number of layers, one of these five.
        channels: Number of input channels, 1 or 3.
        classes: Number of logits.
        size: Height and width of the images in pixels. The total stride is 32 for images of at
            least 96 pixels, and 8 below.
    """
    from torchvision import models

    network: nn.Module = models.get_model(f"resnet{depth}", weights=None, num_classes=classes)
    if min(size) < _SMALL:
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    else:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network

"""ResNet-18 with pre-activation blocks, in the form that is usual on CIFAR.

Source: He, Zhang, Ren and Sun, *Identity Mappings in Deep Residual Networks*, ECCV 2016,
arXiv 1603.05027. The layers and their names are those of the network that is common in work on
backdoors, such as BackdoorBench, so that its weights fit. Differences of that network from the
paper: 18 layers of 64 to 512 channels for small images, with a 3x3 stem of stride 1; no
normalisation and no ReLU after the last block. Further differences of this implementation: average
pooling over feature maps of any size; one or three input channels; no in-place activation.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

_WIDTHS = (64, 64, 128, 256, 512)


class _Block(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution, twice; a 1x1 shortcut convolution if shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.shortcut = None if same else nn.Sequential(projection)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        residual: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        # The projection takes the activated input, the identity the input itself.
        return residual + (x if self.shortcut is None else self.shortcut(active))


class PreActResNet(nn.Module):
    """PreActResNet-18 for small images; its total stride is 8.

    Args:
        channels: Number of input channels, 1 or 3.
        classes: Number of logits.
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, _WIDTHS[0], 3, padding=1, bias=False)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                _Block(inputs, outputs, stride=1 if group == 0 else 2),
                _Block(outputs, outputs, stride=1),
            )
            for group, (inputs, outputs) in enumerate(pairwise(_WIDTHS))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(_WIDTHS[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised images."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits

"""Small networks of other kinds than the references of the audit, for `calibrate_audit.py`.

The architectures of RobustKD are convolutional networks with batch normalisation. These have
neither: a linear classifier, a multilayer perceptron, a plain convolutional network and a vision
transformer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
"""Channels, height and width of the images."""


def linear(image: Shape, classes: int) -> nn.Module:
    """Return a linear classifier of the pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(image[0] * image[1] * image[2], classes))


def mlp(image: Shape, classes: int, *, width: int = 128) -> nn.Module:
    """Return a multilayer perceptron with two hidden layers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(image[0] * image[1] * image[2], width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def cnn(image: Shape, classes: int, *, width: int = 16) -> nn.Module:
    """Return three convolutions and two linear layers, without batch normalisation."""
    pixels = (image[1] // 4) * (image[2] // 4)
    return nn.Sequential(
        nn.Conv2d(image[0], width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * pixels, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


class VisionTransformer(nn.Module):
    """Vision transformer that averages its tokens.

    Args:
        image: Channels, height and width of the images; the sides are multiples of ``patch``.
        classes: Number of classes.
        patch: Side of a patch.
        width: Size of a token.
        depth: Number of blocks.
    """

    def __init__(
        self, image: Shape, classes: int, *, patch: int = 4, width: int = 48, depth: int = 3
    ) -> None:
        super().__init__()
        tokens = (image[1] // patch) * (image[2] // patch)
        self.embed = nn.Conv2d(image[0], width, patch, patch)
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


class Kind(NamedTuple):
    """Function from shape of the images and number of classes to a network, and its training.

    Attributes:
        make: The function.
        rate: Initial learning rate of stochastic gradient descent.
        longer: Factor of the number of epochs.
    """

    make: Callable[[Shape, int], nn.Module]
    rate: float = 0.05
    longer: int = 3


KINDS = {
    "linear": Kind(linear),
    "mlp": Kind(mlp),
    "cnn": Kind(cnn),
    "vit": Kind(VisionTransformer, rate=0.02),
}
"""Kinds by the name of their architecture."""

"""Layouts of features: the order of channels and positions, and conversion to feature maps.

Convolutional stages have features of shape N x C x H x W, Swin transformers and similar networks
N x H x W x C, and the blocks of other transformers N x T x C. The first of the T tokens may not
belong to patches of the image (class, distillation and register tokens). Losses on channels or
positions use all features as maps of shape N x C x H x W:

- Patch tokens are arranged in the grid of their patches.
- The mean of the other tokens is added to every position, so that a student imitates their
  information as well (the "add" readout of Ranftl et al. 2021, *Vision Transformers for Dense
  Prediction*, arXiv 2103.13413).
- Tokens that do not fill a grid with the proportions of the image form a column, N x C x T x 1.

The masks of detoxification do not depend on the layout; they have the shape of the features.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from robustkd.core.types import Features

_MOST_FURTHER_TOKENS = 16


class Layout(NamedTuple):
    """Layout of features.

    Attributes:
        kind: Order of the axes.
        channels: Number of channels.
        size: Height and width of the feature maps.
        further: Number of leading tokens that do not belong to patches.
    """

    kind: Literal["NCHW", "NHWC", "NTC"]
    channels: int
    size: tuple[int, int]
    further: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the features as maps."""
        return (self.channels, *self.size)

    def maps(self, features: Features) -> Tensor:
        """Convert features to N x C x H x W; a view if they are already maps."""
        if self.kind == "NCHW":
            return features
        if self.kind == "NHWC":
            return features.permute(0, 3, 1, 2)
        tokens = features[:, self.further :]
        if self.further:
            tokens = tokens + features[:, : self.further].mean(dim=1, keepdim=True)
        return tokens.transpose(1, 2).reshape(len(tokens), *self.shape)


def layout_of(shape: tuple[int, ...], image: tuple[int, int]) -> Layout | None:
    """Determine the layout of features from their shape.

    Networks reduce height and width by the same factor. Therefore, the two axes with the
    proportions of the image are the positions. If both orders are possible, channels come first.

    Args:
        shape: Shape of the features, without the batch axis.
        image: Height and width of the image.

    Returns:
        The layout; None if the shape has neither two nor three axes.

    >>> layout_of((64, 8, 8), (32, 32))
    Layout(kind='NCHW', channels=64, size=(8, 8), further=0)
    >>> layout_of((7, 7, 768), (224, 224))
    Layout(kind='NHWC', channels=768, size=(7, 7), further=0)
    >>> layout_of((197, 192), (224, 224))
    Layout(kind='NTC', channels=192, size=(14, 14), further=1)
    """
    if len(shape) == 3:
        if not _alike((shape[1], shape[2]), image) and _alike((shape[0], shape[1]), image):
            return Layout("NHWC", shape[2], (shape[0], shape[1]))
        return Layout("NCHW", shape[0], (shape[1], shape[2]))
    if len(shape) != 2:
        return None
    tokens, channels = shape
    for further in range(min(_MOST_FURTHER_TOKENS, tokens - 1)):
        for height in range(2, tokens - further):
            width, left = divmod(tokens - further, height)
            if not left and width > 1 and _alike((height, width), image):
                return Layout("NTC", channels, (height, width), further)
    return Layout("NTC", channels, (tokens, 1))


def _alike(size: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether a size is the image's size divided by one stride, with each side rounded."""
    return abs(size[0] * image[1] - size[1] * image[0]) < max(image)

"""Where channels and positions stand in a network's features, and features as maps.

Convolutional stages give N x C x H x W; Swin and its kin N x H x W x C; transformer blocks
N x T x C, with T tokens of which the first few may be none of the image's patches (class,
distillation, register tokens). Losses that look at channels or positions see all of them as maps,
N x C x H x W:

- the patch tokens become the grid that they came from;
- the mean of the further tokens is added to every position, so that what they know is imitated as
  well (the "add" readout of Ranftl et al. 2021, *Vision Transformers for Dense Prediction*, arXiv
  2103.13413);
- tokens that fill no grid of the image's proportions stay a column, N x C x T x 1.

Masks of the detoxification need no layout: they have the shape of the features as they are.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from robustkd.core.types import Features

_MOST_FURTHER_TOKENS = 16


class Layout(NamedTuple):
    """How features are laid out.

    Attributes:
        kind: The order of the axes.
        channels: Number of channels.
        size: Height and width of the maps.
        further: Tokens in front that are no patches.
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
        """Features as N x C x H x W; a view where they are maps already."""
        if self.kind == "NCHW":
            return features
        if self.kind == "NHWC":
            return features.permute(0, 3, 1, 2)
        tokens = features[:, self.further :]
        if self.further:
            tokens = tokens + features[:, : self.further].mean(dim=1, keepdim=True)
        return tokens.transpose(1, 2).reshape(len(tokens), *self.shape)


def layout_of(shape: tuple[int, ...], image: tuple[int, int]) -> Layout | None:
    """The layout of features, from their shape alone; None for what is no stage of an image.

    Height and width shrink alike, so the axes whose proportions are the image's are the positions;
    where both readings fit, the channels come first.

    Args:
        shape: Of the features, without the batch axis.
        image: Height and width of the image.

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
    """Whether a size is that of the image over one stride, each side rounded on its own."""
    return abs(size[0] * image[1] - size[1] * image[0]) < max(image)

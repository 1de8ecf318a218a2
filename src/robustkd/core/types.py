"""Types shared by the whole package: tensor shapes, batches, data sources and triggers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Images: TypeAlias = Float[Tensor, "n channels height width"]
"""Pixels in [0, 1], NCHW; normalisation is the first layer of every model."""
Labels: TypeAlias = Int[Tensor, " n"]
UNLABELLED = -1
"""Label of a training image that has none."""
Logits: TypeAlias = Float[Tensor, "n classes"]
Features: TypeAlias = Float[Tensor, "n ..."]
"""Features of a stage: N x C x H x W for convolutions, N x T x D for transformer blocks."""
PerSample: TypeAlias = Float[Tensor, " n"]

Settings: TypeAlias = Mapping[str, Any]
"""Keyword arguments of a function that is chosen by its name, such as an attack.

The allowed keys and their types depend on the name; the function checks them.
"""

Split: TypeAlias = Literal["train", "validation", "test"]

RESIZES = ("centred-square", "squash")
"""Known ways from an image of any size to the square input of a model."""
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming")
"""Known ways of resampling: the filters of Pillow, in lower case."""


Places: TypeAlias = Int[Tensor, " _"]
"""Places of some images in a batch, in increasing order."""
Plan: TypeAlias = Callable[[Sequence[int]], Sequence[Places]]
"""Function that chooses, from the sizes of all batches, the places of some images of each batch."""


class Batch(NamedTuple):
    """Labelled images with their indices in the split."""

    images: Images
    labels: Labels
    rows: Labels


@runtime_checkable
class DataSource(Protocol):
    """Clean labelled images in three splits that share no image.

    A defence receives a data source and a teacher, and nothing else. ``train`` is for fitting
    weights, ``validation`` for selection, and ``test`` for the final measurement.

    A source may have the attributes ``resize``, ``crop`` and ``interpolation`` as well, which say
    how its images were read; see `robustkd.Spec`.
    """

    @property
    def name(self) -> str:
        """Short name, e.g. ``digits``; written into results."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; the label ``k`` means ``classes[k]``."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""

    def size(self, split: Split) -> int:
        """Number of images in ``split``."""

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """Iterate once over ``split``; the last batch may be smaller.

        Args:
            split: The split.
            batch_size: Largest number of images in a batch, at least 1.
            device: Device of the batches.
            shuffle: Generator for a random order; None keeps the order of the split.
            augment: Generator for random crops and flips; None for no augmentation.

        Yields:
            Images in channels_last memory format, float32 in [0, 1], with labels and indices.
        """


@runtime_checkable
class Trigger(Protocol):
    """A pure function on batches of images, float in [0, 1]."""

    def __call__(self, images: Images) -> Images:
        """Return the images with the trigger applied, of the same shape and in [0, 1]."""

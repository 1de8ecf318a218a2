"""Types shared by the whole package: array shapes, batches, data sources and triggers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Images: TypeAlias = Float[Tensor, "n channels height width"]
"""Pixels in [0, 1], NCHW; normalisation is the first layer of every model."""
Labels: TypeAlias = Int[Tensor, " n"]
UNLABELLED = -1
"""The label of a training image that has none."""
Logits: TypeAlias = Float[Tensor, "n classes"]
Features: TypeAlias = Float[Tensor, "n ..."]
"""What a tap reads: N x C x H x W of a convolutional stage, N x T x D of a transformer block."""
PerSample: TypeAlias = Float[Tensor, " n"]

Settings: TypeAlias = Mapping[str, Any]
"""Keyword arguments of a function that is chosen by its name, such as an attack.

Which keys there are, and of which type, depends on the name; the function checks them.
"""

Split: TypeAlias = Literal["train", "validation", "test"]


class Batch(NamedTuple):
    """Some labelled images, and which ones of their split they are."""

    images: Images
    labels: Labels
    rows: Labels


@runtime_checkable
class DataSource(Protocol):
    """Clean labelled images in three splits that share no image.

    A defence sees this and a teacher, nothing else. ``train`` fits weights, ``validation``
    selects, ``test`` is measured once.
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
        """One pass over ``split``; the last batch may be smaller.

        Args:
            split: Which images.
            batch_size: Largest number of images in a batch, at least 1.
            device: Where the batches live.
            shuffle: Source of a random order; None keeps the order of the split.
            augment: Source of random crops and flips, as fits the data; None for none.

        Yields:
            Images in channels_last memory format, float32 in [0, 1], with labels and indices.
        """


@runtime_checkable
class Trigger(Protocol):
    """A pure function on batches of images, float in [0, 1]."""

    def __call__(self, images: Images) -> Images:
        """Images with the trigger in them; same shape, still in [0, 1]."""

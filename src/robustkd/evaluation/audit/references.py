"""Reference networks: trained from labels alone, so that they cannot have inherited a backdoor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from robustkd.core.types import Batch, DataSource, Split
from robustkd.models import builder, learning_rate
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

_SMALL, _LARGE = "wrn-10-1", "mobilenet-v2-0.25"
_LARGEST_SIDE = 64
_EPOCHS = 3


@dataclass(frozen=True)
class Limited:
    """A `robustkd.core.types.DataSource` whose epochs have fewer images, without augmentation.

    Every epoch takes other random images.

    Attributes:
        source: The complete data.
        most: Number of training images in an epoch.
    """

    source: DataSource
    most: int

    @property
    def name(self) -> str:
        """Short name of the source."""
        return self.source.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.source.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self.source.image_shape

    def size(self, split: Split) -> int:
        """Number of images in ``split``."""
        size = self.source.size(split)
        return min(self.most, size) if split == "train" else size

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """Iterate once over ``split``; ``augment`` has no effect."""
        del augment
        left = self.size(split)
        for batch in self.source.batches(
            split, batch_size=batch_size, device=device, shuffle=shuffle
        ):
            if left <= 0:
                return
            yield Batch(*(part[:left] for part in batch))
            left -= len(batch.labels)


def reference_architecture(image_shape: tuple[int, int, int]) -> str:
    """Return the architecture of references for images of a shape.

    >>> reference_architecture((1, 28, 28)), reference_architecture((3, 224, 224))
    ('wrn-10-1', 'mobilenet-v2-0.25')
    """
    return _SMALL if max(image_shape[1:]) <= _LARGEST_SIDE else _LARGE


def epoch_size(data: DataSource, images: int) -> int:
    """Return the number of training images in an epoch, for a number over all epochs."""
    return max(len(data.classes), min(data.size("train"), images // _EPOCHS))


def train_references(
    data: DataSource, count: int, *, images: int, seed: int, arch: str | None = None
) -> tuple[nn.Module, ...]:
    """Train reference networks on clean images and their labels.

    Args:
        data: The images.
        count: Number of networks, which differ in their seeds.
        images: Number of images that each network sees, over all epochs.
        seed: Seed of the first network.
        arch: Architecture; None for that of :func:`reference_architecture`.

    Returns:
        Frozen networks in eval mode.
    """
    build = builder(data) if count else None
    arch = arch or reference_architecture(data.image_shape)
    epoch = epoch_size(data, images)
    made = []
    for place in range(count if build is not None else 0):
        network = build(arch, seed + place)
        fit(
            Supervised(network),
            Limited(data, epoch),
            seed=seed + place,
            epochs=max(1, round(images / epoch)),
            batch_size=min(64, max(8, epoch // 8)),
            lr=learning_rate(arch),
            label=f"reference {place + 1} of {count}",
        )
        made.append(network.eval().requires_grad_(False))
    return tuple(made)

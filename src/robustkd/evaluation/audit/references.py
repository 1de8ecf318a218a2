"""Reference networks: trained from labels alone, so that they cannot have inherited a backdoor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from robustkd.core.errors import UsageError
from robustkd.core.types import UNLABELLED, Batch, DataSource, Split
from robustkd.evaluation.audit.effort import Effort
from robustkd.models import builder, learning_rate
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

_SMALL, _LARGE = "wrn-10-1", "mobilenet-v2-0.25"
_LARGEST_SIDE = 64
_EPOCHS = 3
_SEED = 5000
"""Added to the seeds of references, so that they differ from networks that users train."""


@dataclass(frozen=True)
class Limited:
    """A `robustkd.core.types.DataSource` whose epochs have fewer images, without augmentation.

    Every epoch takes other random images. Training images without a label are left out.

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
        """Iterate once over ``split``; ``augment`` has no effect.

        Raises:
            UsageError: If no image has a label.
        """
        del augment
        left = whole = self.size(split)
        for batch in self.source.batches(
            split, batch_size=batch_size, device=device, shuffle=shuffle
        ):
            if left <= 0:
                return
            labelled = batch.labels != UNLABELLED
            if not bool(labelled.all()):
                batch = Batch(*(part[labelled] for part in batch))
            if len(batch.labels):
                yield Batch(*(part[:left] for part in batch))
                left -= len(batch.labels)
        if left == whole:
            raise UsageError("no training image has a label; the audit needs labels")


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
    data: DataSource, effort: Effort, *, seed: int = 0, arch: str | None = None
) -> tuple[nn.Module, ...]:
    """Train the reference networks of an audit; they serve for all models on the same data.

    Args:
        data: Clean labelled images.
        effort: Number of networks, and of the images that each sees over all epochs.
        seed: Seed of the first network.
        arch: Architecture; None for that of :func:`reference_architecture`.

    Returns:
        Frozen networks in eval mode.
    """
    if not effort.references:
        return ()
    build = builder(data)
    arch = arch or reference_architecture(data.image_shape)
    epoch = epoch_size(data, effort.reference_images)
    made = []
    for place in range(effort.references):
        network = build(arch, _SEED + seed + place)
        fit(
            Supervised(network),
            Limited(data, epoch),
            seed=_SEED + seed + place,
            epochs=max(1, round(effort.reference_images / epoch)),
            batch_size=min(64, max(8, epoch // 8)),
            lr=learning_rate(arch),
            label=f"reference {place + 1} of {effort.references}",
            epoch_lines=False,
        )
        made.append(network.eval().requires_grad_(False))
    return tuple(made)

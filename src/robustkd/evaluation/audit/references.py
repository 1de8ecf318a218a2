"""Reference networks: trained from labels alone, so that they cannot have inherited a backdoor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from robustkd.core.progress import track
from robustkd.core.types import Batch, DataSource, Split
from robustkd.evaluation.audit.effort import Effort
from robustkd.evaluation.audit.search import Found, search
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


@dataclass(frozen=True)
class References:
    """Reference networks, and the transformations that were learned against each of them.

    Attributes:
        networks: Networks that were trained from labels alone, frozen and in eval mode.
        found: Learned transformations, one entry per network.
    """

    networks: tuple[nn.Module, ...] = ()
    found: tuple[Found, ...] = ()


def prepare_references(
    data: DataSource,
    effort: Effort,
    *,
    networks: tuple[nn.Module, ...] | None = None,
    seed: int = 0,
) -> References:
    """Make the references of an audit; they can be used for several models on the same data.

    Args:
        data: Clean labelled images.
        effort: Number of references and of steps; the same as that of the audit.
        networks: Frozen networks that were trained from labels alone; None to train them.
        seed: Seed of everything random.
    """
    if networks is None:
        networks = train_references(
            data, effort.references, images=effort.reference_images, seed=_SEED + seed
        )
    scaled = effort.for_classes(len(data.classes))
    return References(networks, search_all(networks, data, scaled, seed=seed, label="references"))


def search_all(
    networks: tuple[nn.Module, ...], data: DataSource, effort: Effort, *, seed: int, label: str
) -> tuple[Found, ...]:
    """Learn transformations against each of some networks."""
    if not networks:
        return ()
    with track(label, len(networks) * effort.steps * len(effort.strengths)) as update:
        return tuple(search(each, data, effort, seed=seed, tell=update) for each in networks)


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
    if not count:
        return ()
    build = builder(data)
    arch = arch or reference_architecture(data.image_shape)
    epoch = epoch_size(data, images)
    made = []
    for place in range(count):
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

"""Reference networks: trained from labels alone, so that they cannot have inherited a backdoor.

The search of the audit is made against each of them as well. What misleads them as often as it
misleads the network under audit is a weakness of the data or of all networks, and no evidence of a
backdoor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.progress import track
from robustkd.core.types import UNLABELLED, Batch, DataSource, Images, Labels, Split
from robustkd.core.usual_state import usual_state
from robustkd.core.validation import check_seed
from robustkd.data.wrapper import Wrapper
from robustkd.evaluation.audit.effort import Effort
from robustkd.evaluation.audit.moved import Mean, count_moved, mean_moved
from robustkd.evaluation.audit.search import halves, held_out_images, search
from robustkd.models import builder, learning_rate
from robustkd.student.families import members_of
from robustkd.student.families.search import led_shares
from robustkd.training.inference import frozen_copy
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

_SMALL, _LARGE = "wrn-10-1", "mobilenet-v2-0.25"
_LARGEST_SIDE = 64
_EPOCHS = 3
_SEED = 5000
"""Added to the seeds of references, so that they differ from networks that users train."""


class MeanLed(NamedTuple):
    """How far the class of a reference that is led furthest is led by all families on average.

    Attributes:
        choosing: Mean share on the half of the held-out images that chooses the class.
        testing: Mean share on the half that tests.
    """

    choosing: float
    testing: Mean


@dataclass(frozen=True)
class References:
    """Networks that cannot have inherited a backdoor, and how often a search misleads them.

    Attributes:
        networks: The networks, frozen and in eval mode; possibly none.
        led: How often transformations that were learned against one of the networks mislead *this*
            network, while the others recognise the images: the largest share of any network, on
            the half of the held-out images that chooses and on the half that tests; None without
            networks. A single network has no others, so that all images count.
        images: Smallest number of images behind a share on the half that tests, as a mean over the
            other networks; 0 without networks.
        means: Likewise for all families together and each strength, as a mean over the networks.
        effort: Effort of the search, for the number of classes; None without networks.

    Raises:
        UsageError: If there are networks that were not searched.
    """

    networks: tuple[nn.Module, ...] = ()
    led: Float[Tensor, "halves strengths families"] | None = None
    images: float = 0.0
    means: tuple[MeanLed, ...] = ()
    effort: Effort | None = None

    def __post_init__(self) -> None:
        if self.networks and (self.led is None or self.effort is None or not self.means):
            raise UsageError("expected references that were searched, see search_references")

    def for_audit(self, effort: Effort, device: torch.device) -> References:
        """Return the references on the device of the audited network.

        Raises:
            UsageError: If they were searched with another effort.
        """
        if self.effort is None:
            return self
        for name in ("strengths", "steps", "batch", "held_out"):
            known, expected = getattr(self.effort, name), getattr(effort, name)
            if known != expected:
                raise UsageError(
                    f"the references were searched with {name} {known}; expected {expected}"
                )
        return replace(self, networks=tuple(each.to(device) for each in self.networks))


@dataclass(frozen=True)
class Limited(Wrapper):
    """A `robustkd.core.types.DataSource` whose epochs have fewer images, without augmentation.

    Every epoch takes other random images. Training images without a label are left out.

    Attributes:
        source: The complete data.
        most: Number of training images in an epoch.
    """

    source: DataSource
    most: int

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


@usual_state
def train_references(
    data: DataSource, effort: Effort, *, seed: int = 0, arch: str | None = None
) -> tuple[nn.Module, ...]:
    """Train the reference networks of an audit.

    Args:
        data: Clean labelled images.
        effort: Number of networks, and of the images that each sees over all epochs.
        seed: Seed of the first network.
        arch: Architecture; None for that of :func:`reference_architecture`.

    Returns:
        Frozen networks in eval mode.
    """
    seed = check_seed(seed)
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


@usual_state
def search_references(
    networks: Sequence[nn.Module],
    data: DataSource,
    effort: Effort,
    *,
    seed: int = 0,
    tell: Callable[[], None] = lambda: None,
) -> References:
    """Search each reference for transformations, as the audit searches a network.

    The other references are beside it in the search.

    Args:
        networks: Networks that were trained from labels alone; they are not changed.
        data: Clean labelled images.
        effort: Effort of the audits that use the result.
        seed: Seed of the first search.
        tell: Called after each step.
    """
    seed = check_seed(seed)
    if not networks:
        return References()
    effort = effort.for_classes(len(data.classes))
    frozen = tuple(map(frozen_copy, networks))
    images, labels = held_out_images(data, effort, device_of(frozen[0]))
    led = [
        _led_by_own(
            network,
            [other for other in frozen if other is not network],
            data,
            (images, labels),
            effort,
            _SEED + seed + place,
            tell,
        )
        for place, network in enumerate(frozen)
    ]
    shares, known, means = zip(*led, strict=True)
    return References(
        frozen,
        torch.stack(shares).amax(0),
        float(torch.stack(known).amin()),
        tuple(_averaged(each) for each in zip(*means, strict=True)),
        effort,
    )


def _averaged(measured: Sequence[MeanLed]) -> MeanLed:
    """Return the mean over networks."""
    tested = [each.testing for each in measured]
    count = len(measured)
    mean = Mean(
        fmean(each.value for each in tested),
        math.hypot(*(each.error for each in tested)) / count,
        min(each.images for each in tested),
    )
    return MeanLed(fmean(each.choosing for each in measured), mean)


class _Led(NamedTuple):
    """How far one reference is led by transformations that were learned against it.

    Attributes:
        shares: Largest shares on both halves of the held-out images.
        known: Numbers of images behind those of the second half.
        means: Mean shares over all families, for each strength.
    """

    shares: Float[Tensor, "halves strengths families"]
    known: Float[Tensor, "strengths families"]
    means: tuple[MeanLed, ...]


def _led_by_own(
    network: nn.Module,
    others: Sequence[nn.Module],
    data: DataSource,
    held_out: tuple[Images, Labels],
    effort: Effort,
    seed: int,
    tell: Callable[[], None],
) -> _Led:
    """Return the shares of a network, by transformations learned against it.

    The class is that of the largest share on the first half of the images. Its share on all images
    of the other half is no maximum over classes, which would grow with their number by chance
    alone.
    """
    found = search(network, data, effort, seed=seed, beside=others, tell=tell)
    choosing, testing = halves(*held_out)
    shares = led_shares(
        [network],
        found,
        *choosing,
        held_out=effort.held_out,
        seed=seed,
        classes=len(data.classes),
        recognised_by=others,
    )[0]
    largest, targets = shares.max(2)
    counted = [
        [
            count_moved(network, others, family, int(target), *testing)
            for family, target in zip(members_of(families), row, strict=True)
        ]
        for families, row in zip(found, targets, strict=True)
    ]
    tested = torch.tensor([[each.share for each in row] for row in counted])
    known = torch.tensor([[each.known for each in row] for row in counted])
    means = tuple(
        MeanLed(
            float(row.amax()),
            mean_moved(network, others, members_of(families), int(row.argmax()), *testing),
        )
        for families, row in zip(found, shares.mean(1), strict=True)
    )
    return _Led(torch.stack([largest, tested]), known, means)


@usual_state
def make_references(data: DataSource, effort: Effort, *, seed: int = 0) -> References:
    """Train and search the reference networks; they serve for all audits on the same data.

    Args:
        data: Clean labelled images.
        effort: Effort of the audits that use the result.
        seed: Seed of the first network.
    """
    networks = train_references(data, effort, seed=seed)
    with track("audit: references", len(networks) * effort.search_steps) as update:
        return search_references(networks, data, effort, seed=seed, tell=update)

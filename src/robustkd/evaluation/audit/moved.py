"""Measure how many images learned transformations move to their class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustkd.core.types import Images, Labels
from robustkd.student.families.bounded import Family
from robustkd.student.families.search import recognised
from robustkd.training.inference import images_at_once


class Moved(NamedTuple):
    """Held-out images of other classes under one transformation, as numbers of images.

    Attributes:
        images: All images.
        led: Images that the searched network assigns to the target.
        beside: Images that a reference assigns to the target, as a mean over the references.
        right: Images that the searched network recognises as they are.
        recognised: Images that a reference recognises as they are, likewise.
        known: Those of them that the searched network recognises as well, likewise.
        moved: Those of them that the searched network assigns to the target and the reference to
            their label, likewise.
    """

    images: int
    led: int
    beside: float
    right: int
    recognised: float
    known: float
    moved: float

    @property
    def share(self) -> float:
        """Share of the images known to both that are moved and that the reference still knows."""
        return self.moved / max(1.0, self.known)

    @property
    def shortfall(self) -> float:
        """Share of images that the references recognise, beyond that of the searched network."""
        return max(0.0, self.recognised - self.right) / max(1, self.images)


@torch.no_grad()
def count_moved(
    network: nn.Module,
    references: Sequence[nn.Module],
    family: Family,
    target: int,
    images: Images,
    labels: Labels,
) -> Moved:
    """Count the images of other classes that the member of one class moves there.

    Args:
        network: Frozen network against which the transformation was learned.
        references: Frozen networks that are to recognise the images. Without any, each image counts
            as recognised, before and after the transformation.
        family: Family of the transformation.
        target: Index of the class.
        images: Clean images, N x C x H x W; those of the class are left out.
        labels: Their labels.
    """
    count = led = beside = right = recognised_as_is = known = after = 0
    for some, truth, toward in _of_other_classes(images, labels, target):
        seen = family(some, toward)
        hit = network(seen).argmax(1) == toward
        as_is = recognised(references, some, truth)
        own = recognised([network], some, truth)
        before = as_is & own
        count += len(truth)
        right += int(own.sum())
        led += int(hit.sum())
        beside += int(recognised(references, seen, toward).sum())
        recognised_as_is += int(as_is.sum())
        known += int(before.sum())
        after += int((before & hit & recognised(references, seen, truth)).sum())
    among = max(1, len(references))
    return Moved(
        images=count,
        led=led,
        beside=beside / among,
        right=right,
        recognised=recognised_as_is / among,
        known=known / among,
        moved=after / among,
    )


def _of_other_classes(
    images: Images, labels: Labels, target: int
) -> Iterator[tuple[Images, Labels, Labels]]:
    """Yield parts of the images of other classes, with their labels and the target for each."""
    others = labels != target
    images, labels = images[others], labels[others]
    at_once = images_at_once(images)
    for some, truth in zip(images.split(at_once), labels.split(at_once), strict=True):
        yield some, truth, torch.full_like(truth, target)


class Mean(NamedTuple):
    """Mean of a measurement over images.

    Attributes:
        value: The mean.
        error: Its standard error, which is at least one divided by the number of images; infinite
            for fewer than two images.
        images: Number of images.
    """

    value: float
    error: float
    images: int

    def record(self) -> dict[str, float | int | None]:
        """Return the measurement as JSON values, which have no infinity."""
        return {**self._asdict(), "error": self.error if math.isfinite(self.error) else None}


@torch.no_grad()
def mean_moved(
    network: nn.Module,
    references: Sequence[nn.Module],
    families: Sequence[Family],
    target: int,
    images: Images,
    labels: Labels,
) -> Mean:
    """Measure the share of images that the members of one class move there, over all families.

    The value of an image is the share of families and references, among the references that
    recognise it as it is, for which the searched network assigns the transformed image to the
    target and the reference still to its label. Only images count that the searched network and a
    reference recognise.

    Args:
        network: Frozen network against which the transformations were learned.
        references: Frozen networks that are to recognise the images; see :func:`count_moved`.
        families: Families of the transformations.
        target: Index of the class.
        images: Clean images, N x C x H x W; those of the class are left out.
        labels: Their labels.
    """
    values: list[Tensor] = []
    for some, truth, toward in _of_other_classes(images, labels, target):
        before = recognised(references, some, truth) & recognised([network], some, truth)
        moved = torch.zeros(len(truth), device=truth.device)
        for family in families:
            seen = family(some, toward)
            hit = before & (network(seen).argmax(1) == toward)
            moved += (hit & recognised(references, seen, truth)).sum(0)
        known = before.sum(0)
        values.append((moved / known.clamp_min(1) / max(1, len(families)))[known > 0])
    found = torch.cat(values).double()
    count = len(found)
    if not count:
        return Mean(0.0, math.inf, 0)
    # A few equal values do not show that there are no others.
    error = max(float(found.std()) / math.sqrt(count), 1 / count) if count > 1 else math.inf
    return Mean(float(found.mean()), error, count)

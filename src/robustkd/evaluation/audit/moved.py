"""Count the images that one learned transformation moves to its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

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
    others = labels != target
    images, labels = images[others], labels[others]
    led = beside = right = recognised_as_is = known = after = 0
    at_once = images_at_once(images)
    for some, truth in zip(images.split(at_once), labels.split(at_once), strict=True):
        toward = torch.full_like(truth, target)
        seen = family(some, toward)
        hit = network(seen).argmax(1) == toward
        as_is = recognised(references, some, truth)
        own = recognised([network], some, truth)
        before = as_is & own
        right += int(own.sum())
        led += int(hit.sum())
        beside += int(recognised(references, seen, toward).sum())
        recognised_as_is += int(as_is.sum())
        known += int(before.sum())
        after += int((before & hit & recognised(references, seen, truth)).sum())
    count = max(1, len(references))
    return Moved(
        images=len(labels),
        led=led,
        beside=beside / count,
        right=right,
        recognised=recognised_as_is / count,
        known=known / count,
        moved=after / count,
    )

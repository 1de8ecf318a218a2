"""Search for transformations that move any image to one class, against a frozen network.

The families are those that hardening trains students against: additions to the pixels, masked
patterns, the generator, and the warp. Every family has one member for each class. All members are
learned at the same time by the sign of averaged gradients, at falling strengths.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.types import UNLABELLED, Batch, DataSource, Images, Labels
from robustkd.evaluation.audit.effort import Effort
from robustkd.student.families import Ball, Patch, make_family, members_of

FAMILIES = ("additions", "patterns", "generator", "warp")
"""Families of the search, in their order."""
_EPSILON, _MASS = 0.2, 0.05
_BATCH, _LARGEST = 250, 64 * 64
_FEWEST = 8

Found: TypeAlias = tuple[nn.ModuleList, ...]
"""Families with learned members, at each strength."""


def new_families(
    classes: int, image: tuple[int, int, int], random: torch.Generator
) -> nn.ModuleList:
    """Make all families of :data:`FAMILIES` with random members."""
    return nn.ModuleList(
        [
            Ball(classes, image, _EPSILON, random),
            Patch(classes, image, _MASS, random),
            *(make_family(name, classes, image, random) for name in FAMILIES[2:]),
        ]
    )


def search(
    network: nn.Module,
    data: DataSource,
    effort: Effort,
    *,
    seed: int,
    tell: Callable[[], None] = lambda: None,
) -> Found:
    """Learn transformations towards every class on training images.

    Args:
        network: Frozen network in eval mode.
        data: Clean images.
        effort: Number of steps and images.
        seed: Seed of initial members, order of images and drawn classes.
        tell: Called after each step.

    Returns:
        Families with the learned members, for each strength of ``effort``.
    """
    classes = len(data.classes)
    random = torch.Generator().manual_seed(seed)
    families = new_families(classes, data.image_shape, random)
    batches = _endless(data, effort.batch * classes, device_of(network), random)
    at_once = images_at_once(data.image_shape)
    found = []
    for strength in effort.strengths:
        with torch.no_grad():
            for family in members_of(families):
                family.bound(strength)
        for _ in range(effort.steps):
            images, labels, _rows = next(batches)
            toward = other_classes(labels, classes, random)
            for some, led in zip(images.split(at_once), toward.split(at_once), strict=True):
                logits = network(transformed(families, some, led))
                (-F.cross_entropy(logits, led, reduction="sum")).backward()
            with torch.no_grad():
                for family in members_of(families):
                    family.advance(strength)
            tell()
        found.append(copy.deepcopy(families))
    return tuple(found)


def images_at_once(image_shape: tuple[int, int, int]) -> int:
    """Return how many images pass a network at once, so that large ones fit into memory.

    >>> images_at_once((3, 32, 32)), images_at_once((3, 224, 224))
    (250, 20)
    """
    _, height, width = image_shape
    return max(_FEWEST, _BATCH * _LARGEST // max(_LARGEST, height * width))


def transformed(families: nn.ModuleList, images: Images, toward: Labels) -> Images:
    """Transform equal parts of the images by one family each."""
    parts = zip(
        families,
        images.tensor_split(len(families)),
        toward.tensor_split(len(families)),
        strict=True,
    )
    changed = torch.cat([family(some, led) for family, some, led in parts if len(some)])
    return changed.contiguous(memory_format=torch.channels_last)


def other_classes(labels: Labels, classes: int, random: torch.Generator) -> Labels:
    """Draw a class for each image that is not its own."""
    shift = torch.randint(1, classes, labels.shape, generator=random).to(labels.device)
    anyone = torch.randint(0, classes, labels.shape, generator=random).to(labels.device)
    return torch.where(labels == UNLABELLED, anyone, (labels + shift) % classes)


def victims(
    labels: Labels, classes: int, count: int, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw images of other classes for every class.

    Args:
        labels: Labels of the available images.
        classes: Number of classes.
        count: Number of images for each class; fewer if there are fewer.
        random: Generator of the choice.

    Returns:
        Indices of the images, and the class of each, which is not its label.
    """
    rows, toward = [], []
    for target in range(classes):
        other = (labels.cpu() != target).nonzero().squeeze(1)
        chosen = other[torch.randperm(len(other), generator=random)[:count]]
        rows.append(chosen)
        toward.append(torch.full_like(chosen, target))
    return torch.cat(rows).to(labels.device), torch.cat(toward).to(labels.device)


@torch.no_grad()
def led_shares(
    networks: Sequence[nn.Module],
    found: Found,
    images: Images,
    labels: Labels,
    *,
    held_out: int,
    seed: int,
    classes: int,
) -> Tensor:
    """Compute the share of images that each transformation moves to its class.

    Args:
        networks: Frozen networks that all see the same transformed images.
        found: Families with learned members, at each strength.
        images: Clean images.
        labels: Their labels; only images of other classes are counted.
        held_out: Number of images for each class, family and strength.
        seed: Seed of their choice.
        classes: Number of classes.

    Returns:
        Shares in [0, 1], networks x strengths x families x classes, on the CPU.
    """
    random = torch.Generator().manual_seed(seed)
    rows, toward = victims(labels, classes, held_out, random)
    counts = toward.bincount(minlength=classes).clamp_min(1).cpu()
    shares = torch.zeros(len(networks), len(found), len(FAMILIES), classes)
    at_once = images_at_once((images.shape[1], images.shape[2], images.shape[3]))
    for level, families in enumerate(found):
        for kind, family in enumerate(members_of(families)):
            for some, led in zip(rows.split(at_once), toward.split(at_once), strict=True):
                seen = family(images[some], led).detach()
                for place, network in enumerate(networks):
                    hits = led[network(seen).argmax(1) == led]
                    shares[place, level, kind] += hits.bincount(minlength=classes).cpu()
    return shares / counts


def _endless(
    data: DataSource, batch_size: int, device: torch.device, random: torch.Generator
) -> Iterator[Batch]:
    """Yield shuffled batches of training images without end."""
    size = min(batch_size, data.size("train"))
    while True:
        for batch in data.batches("train", batch_size=size, device=device, shuffle=random):
            if len(batch.labels) >= len(FAMILIES):
                yield batch

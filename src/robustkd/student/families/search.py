"""Search for universal perturbations towards every class, against a frozen network.

All families and classes are learned at the same time by the sign of averaged gradients, at falling
strengths. The audit searches a network that it examines, and hardening searches the teacher.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.types import UNLABELLED, DataSource, Images, Labels
from robustkd.student.families import Ball, Patch, make_family, members_of
from robustkd.training.batches import endless, other_classes
from robustkd.training.inference import AT_ONCE, batch_size_for, images_at_once

_EPSILON, _MASS = 0.2, 0.05
"""Bounds of additions and patterns, those of hardening."""

LearnedFamilies: TypeAlias = tuple[nn.ModuleList, ...]
"""Families with learned members, at each strength."""


def new_families(
    names: Iterable[str], classes: int, image: tuple[int, int, int], random: torch.Generator
) -> nn.ModuleList:
    """Make families by their names, with random members.

    Args:
        names: Names of :data:`robustkd.student.families.FAMILIES`, and ``additions`` and
            ``patterns``.
        classes: Number of classes.
        image: Channels, height and width.
        random: Generator of the initial members.
    """
    return nn.ModuleList([_family(name, classes, image, random) for name in names])


def _family(
    name: str, classes: int, image: tuple[int, int, int], random: torch.Generator
) -> nn.Module:
    if name == "additions":
        return Ball(classes, image, _EPSILON, random)
    if name == "patterns":
        return Patch(classes, image, _MASS, random)
    return make_family(name, classes, image, random)


def learn_towards(
    families: nn.ModuleList,
    network: nn.Module,
    data: DataSource,
    random: torch.Generator,
    *,
    batch_size: int,
    strengths: Iterable[float],
    steps: int,
    beside: Sequence[nn.Module] = (),
    tell: Callable[[], None] = lambda: None,
) -> LearnedFamilies:
    r"""Learn members that move training images to their class.

    With other networks beside it, members are learned that move an image x with label y to class k
    for the network f, while the other networks g recognise it:

    .. math:: \min_T \; \mathrm{CE}(f(T(x)), k) + \mathrm{CE}(g(T(x)), y)

    Each step uses one of the other networks, in turn.

    Args:
        families: Families with a member for each class, which are learned in place.
        network: Frozen network in eval mode.
        data: Clean images.
        random: Generator of the order of images and of the drawn classes.
        batch_size: Images of a step, over all families and classes.
        strengths: Bounds as shares of the full bounds, in decreasing order.
        steps: Optimiser steps at each strength.
        beside: Frozen networks that are to recognise the transformed images; possibly none.
        tell: Called after each step.

    Returns:
        Copies of the families for each strength.
    """
    classes = len(data.classes)
    batches = endless(data, batch_size, device_of(network), shuffle=random, least=len(families))
    at_once = batch_size_for(data.image_shape, AT_ONCE)
    others = itertools.cycle(beside or (None,))

    def ascend() -> None:
        images, labels, _rows = next(batches)
        toward = _draw_other_classes(labels, classes, random)
        other = next(others)
        parts = (images.split(at_once), labels.split(at_once), toward.split(at_once))
        for some, known, led in zip(*parts, strict=True):
            changed = transformed(families, some, led)
            loss = F.cross_entropy(network(changed), led, reduction="sum")
            if other is not None:
                loss = loss + _recognised(other(changed), known)
            (-loss).backward()

    return tuple(learn_at(families, strength, steps, ascend, tell) for strength in strengths)


def learn_at(
    families: nn.ModuleList,
    strength: float,
    steps: int,
    ascend: Callable[[], None],
    tell: Callable[[], None],
) -> nn.ModuleList:
    """Learn members at one strength, in place, and return a copy of them.

    Args:
        families: Families with a member for each class.
        strength: Bound as a share of the full bounds.
        steps: Optimiser steps.
        ascend: Function that computes the gradients of a step.
        tell: Called after each step.
    """
    with torch.no_grad():
        for family in members_of(families):
            family.bound(strength)
    for _ in range(steps):
        ascend()
        with torch.no_grad():
            for family in members_of(families):
                family.advance(strength)
        tell()
    return copy.deepcopy(families)


def _recognised(logits: Tensor, labels: Labels) -> Tensor:
    """Return the summed cross-entropy to the labels; images without a label count nothing."""
    return F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")


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


def _draw_other_classes(labels: Labels, classes: int, random: torch.Generator) -> Labels:
    shift = torch.randint(1, classes, labels.shape, generator=random).to(labels.device)
    anyone = torch.randint(0, classes, labels.shape, generator=random).to(labels.device)
    return other_classes(labels, shift, anyone, classes)


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
    networks: Iterable[nn.Module],
    found: LearnedFamilies,
    images: Images,
    labels: Labels,
    *,
    held_out: int,
    seed: int,
    classes: int,
    recognised_by: Sequence[nn.Module] = (),
) -> Tensor:
    """Compute the share of images that each transformation moves to its class.

    With networks that are to recognise the images, the share is that of pairs of an image and such
    a network. A pair counts if both networks predict the label of the image before the
    transformation, and it is a success if the searched network then predicts the class and the
    other network still the label.

    Args:
        networks: Frozen networks that all see the same transformed images.
        found: Families with learned members, at each strength.
        images: Clean images.
        labels: Their labels; only images of other classes are counted.
        held_out: Number of images for each class, family and strength.
        seed: Seed of their choice.
        classes: Number of classes.
        recognised_by: Frozen networks that are to recognise the transformed images; possibly none.

    Returns:
        Shares in [0, 1], networks x strengths x families x classes, on the CPU.
    """
    beside = list(networks)
    random = torch.Generator().manual_seed(seed)
    rows, toward = victims(labels, classes, held_out, random)
    at_once = images_at_once(images)
    parts = list(zip(rows.split(at_once), toward.split(at_once), strict=True))
    known = [_known(beside, recognised_by, images[some], labels[some]) for some, _ in parts]
    counts = torch.zeros(len(beside), classes)
    for (_, led), before in zip(parts, known, strict=True):
        counts += torch.stack([_by_class(led, each, classes) for each in before])
    kinds = len(found[0]) if found else 0
    shares = torch.zeros(len(beside), len(found), kinds, classes)
    for level, families in enumerate(found):
        for kind, family in enumerate(members_of(families)):
            for (some, led), before in zip(parts, known, strict=True):
                seen = family(images[some], led).detach()
                still = recognised(recognised_by, seen, labels[some])
                for place, network in enumerate(beside):
                    hits = before[place] & still & (network(seen).argmax(1) == led)
                    shares[place, level, kind] += _by_class(led, hits, classes)
    return shares / counts[:, None, None].clamp_min(1)


@torch.no_grad()
def recognised(networks: Sequence[nn.Module], images: Images, labels: Labels) -> Tensor:
    """Return which images each network assigns to their label.

    Args:
        networks: Frozen networks; without any, every image is recognised.
        images: Images, N x C x H x W.
        labels: Their labels.

    Returns:
        Booleans, networks x N; 1 x N without networks.
    """
    if not networks:
        return torch.ones(1, len(labels), dtype=torch.bool, device=labels.device)
    return torch.stack([each(images).argmax(1) == labels for each in networks])


def _known(
    networks: Sequence[nn.Module], others: Sequence[nn.Module], images: Images, labels: Labels
) -> Tensor:
    """Return which images each network and each of the others assign to their label.

    Returns:
        Booleans, networks x others x N. Without others, every image counts, and their number is 1.
    """
    known = recognised(others, images, labels)
    if not others:
        return known.expand(len(networks), 1, -1)
    return recognised(networks, images, labels)[:, None] & known


def _by_class(toward: Labels, hits: Tensor, classes: int) -> Tensor:
    """Count the hits, networks x N, of each class, over all networks; on the CPU."""
    return toward.expand(len(hits), -1)[hits].bincount(minlength=classes).cpu()

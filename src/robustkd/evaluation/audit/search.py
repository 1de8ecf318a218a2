"""Search for transformations that move any image to one class, against the audited network.

The families are those that hardening trains students against: additions to the pixels, masked
patterns, the generator, and the warp. Every family has one member for each class.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from robustkd.core.types import DataSource
from robustkd.evaluation.audit.effort import Effort
from robustkd.student.families import Ball, Patch, make_family
from robustkd.student.families.search import Found, learn_towards

FAMILIES = ("additions", "patterns", "generator", "warp")
"""Families of the search, in their order."""
_EPSILON, _MASS = 0.2, 0.05


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
    return learn_towards(
        families,
        network,
        data,
        random,
        batch_size=effort.batch * classes,
        strengths=effort.strengths,
        steps=effort.steps,
        tell=tell,
    )

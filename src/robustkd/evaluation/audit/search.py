"""Search for transformations that move any image to one class, against the audited network.

The families are additions to the pixels, masked patterns, the warp, four of few parameters (tone
curve, light, smooth addition, and filter), and changes of colours behind a warp. Every family has
one member for each class. Many of them mislead networks without a backdoor as well, so reference
networks are part of the search: what is learned misleads the audited network, and the references
recognise the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustkd.core.first_batch import first_batch
from robustkd.core.types import UNLABELLED, DataSource, Images, Labels
from robustkd.evaluation.audit.effort import Effort
from robustkd.student.families.search import LearnedFamilies, learn_towards, new_families

FAMILIES = (
    *("additions", "patterns", "warp", "tone"),
    *("light", "smooth", "filter", "warp+photometric"),
)
"""Families of the search, in their order."""
_FEWEST, _MOST_VALUES = 64, 2 * 10**8


def search(
    network: nn.Module,
    data: DataSource,
    effort: Effort,
    *,
    seed: int,
    families: Sequence[str] = FAMILIES,
    beside: Sequence[nn.Module] = (),
    tell: Callable[[], None] = lambda: None,
) -> LearnedFamilies:
    """Learn transformations towards every class on training images.

    Args:
        network: Frozen network in eval mode.
        data: Clean images.
        effort: Number of steps and images.
        seed: Seed of initial members, order of images and drawn classes.
        families: Names of the families.
        beside: Frozen reference networks that are to recognise the transformed images.
        tell: Called after each step.

    Returns:
        Families with the learned members, for each strength of ``effort``.
    """
    classes = len(data.classes)
    random = torch.Generator().manual_seed(seed)
    return learn_towards(
        new_families(families, classes, data.image_shape, random),
        network,
        data,
        random,
        batch_size=effort.batch * classes,
        strengths=effort.strengths,
        steps=effort.steps,
        beside=beside,
        tell=tell,
    )


def halves(images: Images, labels: Labels) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return images with labels that choose a transformation, and others that test it."""
    half = (len(labels) + 1) // 2
    return (images[:half], labels[:half]), (images[half:], labels[half:])


def held_out_images(
    data: DataSource, effort: Effort, device: torch.device
) -> tuple[Images, Labels]:
    """Return random labelled validation images, always the same ones; fewer large ones."""
    order = torch.Generator().manual_seed(0)
    fitting = max(_FEWEST, _MOST_VALUES // math.prod(data.image_shape))
    most = min(effort.validation, fitting)
    batch = first_batch(data, "validation", batch_size=most, device=device, shuffle=order)
    labelled = batch.labels != UNLABELLED
    return batch.images[labelled], batch.labels[labelled]

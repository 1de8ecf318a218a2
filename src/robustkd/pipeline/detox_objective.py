"""The objective of a method's detoxification, with the perturbations that it needs."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.methods import Method
from robustkd.core.types import DataSource
from robustkd.student.families.search import learn_towards, new_families, transformed
from robustkd.teacher.defences.detoxification import DetoxObjective
from robustkd.teacher.defences.perturbation_variance import PerturbationVariance
from robustkd.training.inference import frozen_copy
from robustkd.training.precision import mixed

STEPS = 24
"""Optimiser steps of the search."""
_STRENGTH = 0.5
"""Bounds of the perturbations, as a share of those of hardening."""
_BATCH, _ALL_CLASSES = 10, 560
"""Images of a step for each class, and for all classes if there are many."""
_FAMILIES = ("additions", "patterns", "generator", "warp")
_FEWEST_IMAGES = 4


def detox_objective(
    how: Method, teacher: nn.Module, clean: DataSource, *, seed: int, steps: int = STEPS
) -> DetoxObjective | None:
    """Return the objective of a method; None for the variance ratio of clean images.

    Args:
        how: The method. If it removes perturbations, they are searched for in full precision.
        teacher: The untrusted network; it is not changed.
        clean: Clean images.
        seed: Seed of everything random.
        steps: Optimiser steps of the search.

    Raises:
        UsageError: If there are fewer than two classes or four training images.
    """
    if how.removes != "perturbations":
        return None
    if len(clean.classes) < 2 or clean.size("train") < _FEWEST_IMAGES:
        raise UsageError(
            f"there are {len(clean.classes)} classes and {clean.size('train')} training images; "
            f"perturbations need at least 2 and {_FEWEST_IMAGES}"
        )
    frozen = frozen_copy(teacher)
    classes = len(clean.classes)
    batch = min(_BATCH, max(len(_FAMILIES), _ALL_CLASSES // classes))
    random = torch.Generator().manual_seed(seed)
    with mixed("no", device_of(frozen)):
        (found,) = learn_towards(
            new_families(_FAMILIES, classes, clean.image_shape, random),
            frozen,
            clean,
            random,
            batch_size=batch * classes,
            strengths=(_STRENGTH,),
            steps=steps,
        )
    return PerturbationVariance(partial(transformed, found), classes, seed)

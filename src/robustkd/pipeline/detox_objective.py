"""The objective of a method's detoxification, with the perturbations that it needs."""

from __future__ import annotations

import copy
from functools import partial

from torch import nn

from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.methods import Method
from robustkd.core.types import DataSource
from robustkd.student.families.search import transformed
from robustkd.teacher.defences.detoxification import Objective
from robustkd.teacher.defences.perturbation_variance import PerturbationVariance
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
) -> Objective | None:
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
    # The audit needs scipy, which takes a second to import.
    from robustkd.evaluation.audit import Effort
    from robustkd.evaluation.audit.search import search

    frozen = copy.deepcopy(teacher).eval().requires_grad_(False)
    classes = len(clean.classes)
    batch = min(_BATCH, max(len(_FAMILIES), _ALL_CLASSES // classes))
    effort = Effort(strengths=(_STRENGTH,), steps=steps, batch=batch)
    with mixed("no", device_of(frozen)):
        (found,) = search(frozen, clean, effort, seed=seed, families=_FAMILIES)
    return PerturbationVariance(partial(transformed, found), classes, seed)

"""The objective of a method's detoxification, with the perturbations that it needs."""

from __future__ import annotations

import copy
from functools import partial

from torch import nn

from robustkd.core.methods import Method
from robustkd.core.types import DataSource
from robustkd.evaluation.audit import Effort
from robustkd.evaluation.audit.search import search, transformed
from robustkd.teacher.defences.detoxification import Objective
from robustkd.teacher.defences.perturbation_variance import PerturbationVariance

_EFFORT = Effort(strengths=(0.5,), steps=24, batch=10)
"""Half the bounds of hardening: masks of features cannot withstand more without losing accuracy."""


def detox_objective(
    how: Method, teacher: nn.Module, clean: DataSource, *, seed: int
) -> Objective | None:
    """Return the objective of a method; None for the variance ratio of clean images.

    Args:
        how: The method. If it removes perturbations, they are searched for, with the families that
            the audit uses.
        teacher: The untrusted network; it is not changed.
        clean: Clean images.
        seed: Seed of everything random.
    """
    if how.removes == "variance":
        return None
    frozen = copy.deepcopy(teacher).eval().requires_grad_(False)
    classes = len(clean.classes)
    (found,) = search(frozen, clean, _EFFORT.for_classes(classes), seed=seed)
    return PerturbationVariance(partial(transformed, found), classes, seed)

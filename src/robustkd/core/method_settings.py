"""Settings of detoxification and hardening, which are parts of a method."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Literal, TypeAlias, TypedDict

Ratio: TypeAlias = Literal["position", "stage"]
Setting: TypeAlias = float | int | str | bool | tuple[str, ...]


@dataclass(frozen=True)
class DetoxSettings:
    """Settings of detoxification; their ranges are checked by ``detoxify``.

    Attributes:
        cap: Largest value of a mask, in (0, 1].
        ratio: How the variance ratio is computed: at each ``position`` of a feature map, and then
            averaged, or once for each ``stage``.
        accuracy_budget: Largest loss of clean validation accuracy, in [0, 1).
        variance_weight: First weight of the variance term in the loss, above 0.
        growth: Factor between two successive weights, above 1.
        raises: Largest number of times that the weight is raised.
        bisections: Number of bisections between the last two weights.
        steps: Optimiser steps for each weight.
        batch_size: Images per step.
        lr: Learning rate of the masks.
    """

    cap: float = 1.0
    ratio: Ratio = "position"
    accuracy_budget: float = 0.02
    variance_weight: float = 1.0
    growth: float = 4.0
    raises: int = 3
    bisections: int = 2
    steps: int = 60
    batch_size: int = 128
    lr: float = 0.05


class DetoxOptions(TypedDict, total=False):
    """Fields of :class:`DetoxSettings` as keyword arguments."""

    cap: float
    ratio: Ratio
    accuracy_budget: float
    variance_weight: float
    growth: float
    raises: int
    bisections: int
    steps: int
    batch_size: int
    lr: float


@dataclass(frozen=True)
class HardeningSettings:
    """Settings of hardening.

    See :class:`robustkd.student.hardening.UniversalPerturbations`.

    Attributes:
        epsilon: Bound of additions in pixel units, in [0, 1]; 0 disables this family.
        mass: Largest mean of the masks of patterns, in [0, 1]; 0 disables this family.
        share: Number of perturbed copies added to a batch, as a share of the batch, in (0, 1].
        distilled: If True, the distillation losses compare the copies with the teacher's outputs
            for the clean images.
        recovered: If True, copies are trained towards their true label; if False, they are only
            pushed away from the class of the perturbation.
        fade: Share of the training, at its end, over which the copies become fewer, in [0, 1].
        families: Further families of transformations, by name.
        composed: If True, a copy is changed by several families in a row.
        found: Families that are searched on the teacher before the training, by name; see
            :mod:`robustkd.student.found`. Empty for no search.
        found_share: Share of the copies that are changed by what was found, in [0, 1].
    """

    epsilon: float = 0.2
    mass: float = 0.05
    share: float = 1.0
    distilled: bool = False
    recovered: bool = True
    fade: float = 0.0
    families: tuple[str, ...] = ()
    composed: bool = False
    found: tuple[str, ...] = ()
    found_share: float = 0.5


def stated(settings: DetoxSettings | HardeningSettings | None) -> dict[str, Setting] | None:
    """Return the settings that identify stored results, in JSON values.

    The settings of the first version are always stated; later ones only where they differ from
    their default, so that a new setting renames no stored result.
    """
    if settings is None:
        return None
    first = {"cap", "ratio", "accuracy_budget", "epsilon", "mass", "share", "distilled"}
    defaults = {f.name: f.default for f in fields(settings) if f.default is not MISSING}
    return {
        name: value
        for name, value in asdict(settings).items()
        if name in first or value != defaults[name]
    }

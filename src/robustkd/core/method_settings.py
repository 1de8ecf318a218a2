"""Settings of detoxification and hardening, which are parts of a method."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Literal, TypeAlias, TypedDict, get_args

from robustkd.core.errors import UsageError
from robustkd.core.validation import (
    check_count,
    check_names,
    check_positive,
    check_rates,
    check_share,
    hold_plain_numbers,
)

Ratio: TypeAlias = Literal["position", "stage"]
Setting: TypeAlias = float | int | str | bool | tuple[str, ...]


@dataclass(frozen=True)
class DetoxSettings:
    """Settings of detoxification.

    Attributes:
        cap: Largest value of a mask, in (0, 1].
        ratio: How the variance ratio is computed: at each ``position`` of a feature map, and then
            averaged, or once for each ``stage``.
        accuracy_budget: Largest loss of clean validation accuracy, in [0, 1).
        variance_weight: First weight of the variance term in the loss, above 0.
        growth: Factor between two successive weights, above 1.
        raises: Largest number of times that the weight is raised while the accuracy is within the
            budget, at least 0.
        lowerings: Largest number of times that the first weight is lowered until the accuracy is
            within the budget, at least 0.
        bisections: Number of bisections between the last two weights, at least 0.
        steps: Optimiser steps for each weight, at least 1.
        batch_size: Images per step, at least 2.
        lr: Learning rate of masks and patterns, above 0.

    Raises:
        UsageError: If a number is out of range, or ``ratio`` is unknown.
    """

    cap: float = 1.0
    ratio: Ratio = "position"
    accuracy_budget: float = 0.02
    variance_weight: float = 1.0
    growth: float = 4.0
    raises: int = 3
    lowerings: int = 3
    bisections: int = 2
    steps: int = 60
    batch_size: int = 128
    lr: float = 0.05

    def __post_init__(self) -> None:
        check_share(cap=self.cap)
        if self.ratio not in get_args(Ratio):
            known = " or ".join(get_args(Ratio))
            raise UsageError(f"ratio is {self.ratio!r}; expected {known}")
        check_share(zero=True, one=False, accuracy_budget=self.accuracy_budget)
        check_positive(variance_weight=self.variance_weight, growth=self.growth)
        if self.growth <= 1:
            raise UsageError(f"growth is {self.growth}; expected more than 1")
        check_count(
            least=0, raises=self.raises, lowerings=self.lowerings, bisections=self.bisections
        )
        check_count(steps=self.steps)
        check_count(least=2, batch_size=self.batch_size)  # for a variance
        check_rates(lr=self.lr)
        hold_plain_numbers(self)

    @property
    def most_steps(self) -> int:
        """Largest number of optimiser steps, over all weights that are tried."""
        return self.steps * (1 + max(self.raises, self.lowerings) + self.bisections)


class DetoxOptions(TypedDict, total=False):
    """Fields of :class:`DetoxSettings` as keyword arguments."""

    cap: float
    ratio: Ratio
    accuracy_budget: float
    variance_weight: float
    growth: float
    raises: int
    lowerings: int
    bisections: int
    steps: int
    batch_size: int
    lr: float


BY_DATA = (
    *("variance_weight", "growth", "raises", "lowerings", "bisections"),
    *("steps", "batch_size", "lr"),
)
"""Settings of detoxification that may depend on the data; the others define the method."""


def detox_for_data(method: DetoxSettings, options: DetoxOptions | None) -> DetoxSettings:
    """Return the settings of a method with those that depend on the size of the data.

    Args:
        method: Settings of the method.
        options: Some of the settings in :data:`BY_DATA`; None for none.

    Raises:
        UsageError: If another setting is given, or a number is out of range.

    >>> detox_for_data(DetoxSettings(cap=0.2), {"steps": 9}) == DetoxSettings(cap=0.2, steps=9)
    True
    """
    given = DetoxOptions() if options is None else options
    for name in given:
        if name not in BY_DATA:
            raise UsageError(f"{name} is set by the method; expected one of {', '.join(BY_DATA)}")
    return replace(method, **given)


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

    Raises:
        UsageError: If a number is out of range.
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

    def __post_init__(self) -> None:
        check_share(zero=True, epsilon=self.epsilon, mass=self.mass)
        check_share(share=self.share)
        check_share(zero=True, fade=self.fade, found_share=self.found_share)
        check_names(families=self.families, found=self.found)
        hold_plain_numbers(self)


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

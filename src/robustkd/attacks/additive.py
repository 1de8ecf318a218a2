"""A perturbation that is added to every picture: what universal adversarial attacks learn."""

from __future__ import annotations

from dataclasses import dataclass

from robustkd.attacks.triggers import Plane
from robustkd.errors import UsageError
from robustkd.types import Images


@dataclass(frozen=True, eq=False)
class Additive:
    """``clamp(image + delta, 0, 1)``.

    Source: Moosavi-Dezfooli, Fawzi, Fawzi, Frossard 2017, arXiv 1610.08401 (universal
    perturbations).

    Attributes:
        delta: C x H x W in [-1, 1].
    """

    delta: Plane

    def __post_init__(self) -> None:
        if not bool(((self.delta >= -1) & (self.delta <= 1)).all()):
            raise UsageError("the trigger's delta leaves [-1, 1]")

    def __call__(self, images: Images) -> Images:
        """Add the perturbation and clip."""
        if images.shape[1:] != self.delta.shape:
            raise UsageError(
                f"the trigger is {tuple(self.delta.shape)}; "
                f"the images are {tuple(images.shape[1:])}"
            )
        return (images + self.delta.to(images)).clamp(0, 1)

"""Additive trigger: a fixed perturbation, as learned by universal adversarial attacks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustkd.attacks.triggers.patterns import Plane
from robustkd.core.errors import UsageError
from robustkd.core.types import Images


@dataclass(frozen=True, eq=False)
class Additive:
    """Add a fixed perturbation to images: ``clamp(image + delta, 0, 1)``.

    Source: Moosavi-Dezfooli, Fawzi, Fawzi, Frossard 2017, arXiv 1610.08401 (universal
    perturbations).

    Attributes:
        delta: The perturbation, C x H x W in [-1, 1].
    """

    delta: Plane

    def __post_init__(self) -> None:
        if not bool(((self.delta >= -1) & (self.delta <= 1)).all()):
            raise UsageError(
                f"the trigger's delta has values from {float(self.delta.min()):g} to "
                f"{float(self.delta.max()):g}; expected values in [-1, 1]"
            )

    def __call__(self, images: Images) -> Images:
        """Add the perturbation and clip."""
        if images.shape[1:] != self.delta.shape:
            raise UsageError(
                f"the trigger has shape {tuple(self.delta.shape)}; expected the shape of the "
                f"images, {tuple(images.shape[1:])}"
            )
        return (images + self.delta.to(images)).clamp(0, 1)


def into_range(pixels: Tensor) -> Tensor:
    """Clamp pixels to [0, 1] and pass their gradient through unchanged.

    The gradient of ``clamp`` is zero outside its bounds. Where an image is black, a perturbation
    that darkens it would have no effect and no gradient, and would never change again. On images
    with a black background, half of the perturbation would not be learned.

    Source: the straight-through estimator, Bengio et al. 2013, arXiv 1308.3432.

    Args:
        pixels: Pixels of any shape.

    >>> import torch
    >>> pixels = torch.tensor([-1.0, 0.5, 3.0], requires_grad=True)
    >>> into_range(pixels).sum().backward()
    >>> into_range(pixels).tolist(), pixels.grad.tolist()
    ([0.0, 0.5, 1.0], [1.0, 1.0, 1.0])
    """
    return pixels.detach().clamp(0, 1) + (pixels - pixels.detach())

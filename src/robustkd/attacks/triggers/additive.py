"""A perturbation that is added to every picture: what universal adversarial attacks learn."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustkd.attacks.triggers.patterns import Plane
from robustkd.core.errors import UsageError
from robustkd.core.types import Images


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


def into_range(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1], with the gradient of the pixels before they were put there.

    The gradient of ``clamp`` ends at its bounds: where a picture is black, whatever has begun to
    darken it is told nothing any more and stays, though it does nothing. Pictures with a black
    ground then learn half a perturbation.

    Source: the straight-through estimator, Bengio et al. 2013, arXiv 1308.3432.

    Args:
        pixels: Of any shape.

    >>> import torch
    >>> pixels = torch.tensor([-1.0, 0.5, 3.0], requires_grad=True)
    >>> into_range(pixels).sum().backward()
    >>> into_range(pixels).tolist(), pixels.grad.tolist()
    ([0.0, 0.5, 1.0], [1.0, 1.0, 1.0])
    """
    return pixels.detach().clamp(0, 1) + (pixels - pixels.detach())

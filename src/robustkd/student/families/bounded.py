"""Bounded transformations, one for each class, updated by the sign of averaged gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustkd.core.types import Images, Labels

STEP = 0.1
"""Step size, as a share of the range of the parameters."""
MOMENTUM = 0.9
"""Momentum of the gradients, since one batch has only a few images for each class."""

Shape: TypeAlias = tuple[int, int, int]
Transformation: TypeAlias = Callable[[Images, Tensor], Images]


@runtime_checkable
class Family(Protocol):
    """A kind of transformation with one learned member for each class."""

    def __call__(self, images: Images, toward: Labels) -> Images:
        """Transform every image by the member of its target class ``toward``."""

    def advance(self, scale: float) -> None:
        """Update every used member along its gradient, within ``scale`` times its bound."""

    def bound(self, scale: float) -> None:
        """Project every member onto ``scale`` times its bound."""


class Bounded(nn.Module):
    """One parametric transformation for each class, with parameters in a box.

    Args:
        classes: Number of classes.
        shape: Shape of one member's parameters.
        bound: Largest absolute value of the parameters: one number, or one for each.
        transform: Function of images and one set of parameters for each image; zero parameters
            should leave images unchanged.
        random: Generator of the initial parameters, which are uniform in the box.
        step: Length of a step, as a share of the bound.
        start: Largest absolute value of the initial parameters, as a share of the bound.
    """

    members: Float[Tensor, classes * shape]
    limit: Tensor
    average: Float[Tensor, classes * shape]

    def __init__(
        self,
        classes: int,
        shape: Shape,
        bound: float | Tensor,
        transform: Transformation,
        random: torch.Generator,
        *,
        step: float = STEP,
        start: float | int = 1.0,
    ) -> None:
        super().__init__()
        first = torch.rand((classes, *shape), generator=random) * 2 - 1
        limit = torch.as_tensor(bound, dtype=first.dtype).expand(shape).clone()
        self.transform, self.step = transform, step
        self.register_buffer("limit", limit)
        self.register_buffer("members", start * first * limit)
        self.register_buffer("average", torch.zeros_like(first))

    def forward(self, images: Images, toward: Labels) -> Images:
        """Transform every image by the member of its target class ``toward``."""
        self.to(images.device)
        self.members = self.members.detach().requires_grad_()
        return self.transform(images, self.members[toward])

    def advance(self, scale: float) -> None:
        """Update by the sign of the averaged gradient; members that were not used are unchanged.

        Gradients are normalised before they are averaged.
        """
        gradient = gradient_of(self.members)
        size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
        used = size > 0
        averaged = MOMENTUM * self.average + gradient / size.clamp_min(1e-30)
        self.average = torch.where(used, averaged, self.average)
        step = self.step * scale * self.limit * self.average.sign()
        self.members = self.members.detach() + step * used
        self.bound(scale)

    def bound(self, scale: float) -> None:
        """Project the parameters onto ``scale`` times the box."""
        limit = scale * self.limit
        self.members = torch.maximum(torch.minimum(self.members.detach(), limit), -limit)


class Chain(nn.Module):
    """Families that are applied one after another and updated by the same gradient."""

    def __init__(self, *families: nn.Module) -> None:
        super().__init__()
        self.families = nn.ModuleList(families)

    def forward(self, images: Images, toward: Labels) -> Images:
        """Apply every family's member in order."""
        for family in members_of(self.families):
            images = family(images, toward)
        return images

    def advance(self, scale: float) -> None:
        """Update the members of every family."""
        for family in members_of(self.families):
            family.advance(scale)

    def bound(self, scale: float) -> None:
        """Project the members of every family."""
        for family in members_of(self.families):
            family.bound(scale)


def members_of(families: nn.ModuleList) -> list[Family]:
    """Return the modules of a list as families."""
    return [cast(Family, family) for family in families]


def gradient_of(stepped: Tensor) -> Tensor:
    """Return the gradient, with zero for a missing or non-finite one."""
    return torch.zeros_like(stepped) if stepped.grad is None else stepped.grad.nan_to_num()

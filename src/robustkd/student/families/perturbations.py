"""Additions to the pixels, and masked patterns.

Members of many classes and large images, such as 1,000 classes at 224 pixels, are held in half
precision and computed in full precision.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from robustkd.core.types import Images, Labels
from robustkd.student.families.bounded import STEP, Members, averaged

_IN_FULL = 2**26
"""Largest number of values of the members of all classes that are held in full precision."""


class Ball(Members):
    """One addition to the pixels for each class, within an L-infinity ball.

    Args:
        classes: Number of classes.
        image_shape: Channels, height and width.
        epsilon: Radius in pixel units, in (0, 1].
        random: Generator of the initial additions, which are uniform in the ball.
    """

    delta: Float[Tensor, "classes channels height width"]
    pull: Float[Tensor, "classes channels height width"]

    def __init__(
        self,
        classes: int,
        image_shape: tuple[int, int, int],
        epsilon: float | int,
        random: torch.Generator,
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        # In place, because the members of many classes take much memory.
        start = torch.rand((classes, *image_shape), generator=random).mul_(2).sub_(1)
        values, averages = _held_as(start)
        self.register_buffer("delta", start.mul_(epsilon).to(values))
        self.register_buffer("pull", torch.zeros_like(start, dtype=averages))

    def forward(self, images: Images, toward: Labels) -> Images:
        """Add the addition of its class to each image, and clip to [0, 1]."""
        (own,) = self.used(toward.to(images.device), "delta")
        return (images + own).clamp(0, 1)

    def advance(self, scale: float) -> None:
        """Update by the sign of the averaged gradient, and project onto ``scale`` times the ball.

        Gradients are normalised before they are averaged with momentum. Additions that no image
        received are unchanged.
        """
        read = self.gradients()
        if read is None:
            return
        radius = scale * self.epsilon
        rows, (slope,) = read
        pull, moved = averaged(slope, self.pull[rows].float())
        self.pull[rows] = pull.to(self.pull.dtype)
        delta = self.delta[rows].float() + STEP * radius * pull.sign() * moved
        self.delta[rows] = delta.clamp(-radius, radius).to(self.delta.dtype)

    def bound(self, scale: float) -> None:
        """Project the additions onto ``scale`` times the ball."""
        radius = scale * self.epsilon
        self.delta = self.delta.clamp(-radius, radius)


class Patch(Members):
    """One masked pattern for each class, with a mask in [0, 1] of bounded mean.

    Args:
        classes: Number of classes.
        image_shape: Channels, height and width.
        mass: Largest mean of the mask, in (0, 1]: the share of the image that an opaque pattern
            may cover.
        random: Generator of the initial patterns, which are uniform in [0, 1]; the initial masks
            are ``mass`` everywhere.
    """

    mask: Float[Tensor, "classes 1 height width"]
    pattern: Float[Tensor, "classes channels height width"]

    def __init__(
        self,
        classes: int,
        image_shape: tuple[int, int, int],
        mass: float | int,
        random: torch.Generator,
    ) -> None:
        super().__init__()
        self.mass = mass
        pattern = torch.rand((classes, *image_shape), generator=random)
        values, _ = _held_as(pattern)
        mask = torch.full((classes, 1, *image_shape[1:]), float(mass), dtype=values)
        self.register_buffer("pattern", pattern.to(values))
        self.register_buffer("mask", mask)

    def forward(self, images: Images, toward: Labels) -> Images:
        """Apply the pattern of its class to each image: ``(1 - m) x + m p``."""
        mask, pattern = self.used(toward.to(images.device), "mask", "pattern")
        return torch.lerp(images, pattern, mask)

    def advance(self, scale: float) -> None:
        """Update patterns by the sign and masks by the gradient, and project onto the mass.

        Patterns that no image received are unchanged.
        """
        read = self.gradients()
        if read is None:
            return
        rows, (slope, pull) = read
        # The magnitude is kept, so that mask mass concentrates on the most effective pixels.
        largest = slope.abs().amax(dim=(1, 2, 3), keepdim=True)
        before = self.mask[rows].float()
        mask = onto_mass(before + STEP * slope / largest.clamp_min(1e-12), scale * self.mass)
        self.mask[rows] = torch.where(largest > 0, mask, before).to(self.mask.dtype)
        pattern = (self.pattern[rows].float() + STEP * pull.sign()).clamp(0, 1)
        self.pattern[rows] = pattern.to(self.pattern.dtype)

    def bound(self, scale: float) -> None:
        """Project the masks onto ``scale`` times the mass."""
        self.mask = onto_mass(self.mask.float(), scale * self.mass).to(self.mask.dtype)


def _held_as(members: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Return the types in which members and averages of their gradients are held.

    Normalised gradients of single pixels can exceed the range of float16.
    """
    if members.numel() <= _IN_FULL:
        return members.dtype, members.dtype
    return torch.float16, torch.bfloat16


def onto_mass(
    masks: Float[Tensor, "n 1 height width"], mass: float | int
) -> Float[Tensor, "n 1 height width"]:
    """Project masks onto the set of masks in [0, 1] whose mean is at most ``mass``.

    The result is ``clamp(m - t, 0, 1)`` with the smallest sufficient t >= 0, found by bisection.
    """
    low = torch.zeros(len(masks), 1, 1, 1, device=masks.device)
    high = masks.amax(dim=(1, 2, 3), keepdim=True).clamp_min(0)
    fits = masks.clamp(0, 1).mean(dim=(1, 2, 3), keepdim=True) <= mass
    for _ in range(30):
        middle = (low + high) / 2
        light = (masks - middle).clamp(0, 1).mean(dim=(1, 2, 3), keepdim=True) <= mass
        low, high = torch.where(light, low, middle), torch.where(light, middle, high)
    return (masks - torch.where(fits, 0.0, high)).clamp(0, 1)

"""Additions to the pixels, and patterns behind a mask."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustkd.core.types import Images, Labels
from robustkd.student.families.bounded import MOMENTUM, STEP, gradient_of


class Ball(nn.Module):
    """One addition to the pixels a class, within an L-infinity ball.

    Args:
        classes: Number of classes.
        image_shape: Channels, height and width.
        epsilon: Radius in pixel units, in (0, 1].
        random: Of the start, uniform in the ball.
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
        start = torch.rand((classes, *image_shape), generator=random) * 2 - 1
        self.register_buffer("delta", start * epsilon)
        self.register_buffer("pull", torch.zeros_like(start))

    def forward(self, images: Images, toward: Labels) -> Images:
        """The images with the additions of their classes, in [0, 1]."""
        self.delta = self.delta.detach().to(images.device).requires_grad_()
        return (images + self.delta[toward]).clamp(0, 1)

    def advance(self, scale: float) -> None:
        """Step by the sign of all gradients so far, and back into ``scale`` times the ball.

        Older gradients count less, and each counts for its direction and not for its size. What
        no image wore stays where it is.
        """
        radius = scale * self.epsilon
        slope = gradient_of(self.delta)
        size = slope.abs().mean(dim=(1, 2, 3), keepdim=True)
        used = size > 0
        pulled = MOMENTUM * self.pull.to(slope.device) + slope / size.clamp_min(1e-30)
        self.pull = torch.where(used, pulled, self.pull.to(slope.device))
        self.delta = self.delta + STEP * radius * self.pull.sign() * used
        self.bound(scale)

    def bound(self, scale: float) -> None:
        """Bring the additions back into ``scale`` times the ball."""
        radius = scale * self.epsilon
        self.delta = self.delta.clamp(-radius, radius)


class Patch(nn.Module):
    """One pattern a class behind a mask in [0, 1] of bounded mean, anywhere in the picture.

    Args:
        classes: Number of classes.
        image_shape: Channels, height and width.
        mass: Largest mean of the mask, in (0, 1]: the share of the picture that an opaque
            pattern may cover.
        random: Of the first patterns, uniform in [0, 1]; the first mask is ``mass`` everywhere.
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
        self.register_buffer("pattern", pattern)
        self.register_buffer("mask", torch.full((classes, 1, *image_shape[1:]), float(mass)))

    def forward(self, images: Images, toward: Labels) -> Images:
        """The images behind the patterns of their classes: ``(1 - m) x + m p``."""
        self.mask = self.mask.detach().to(images.device).requires_grad_()
        self.pattern = self.pattern.detach().to(images.device).requires_grad_()
        return torch.lerp(images, self.pattern[toward], self.mask[toward])

    def advance(self, scale: float) -> None:
        """Step patterns by the sign, masks by the size of the gradient, and back to the mass."""
        slope = gradient_of(self.mask)
        # The magnitude is kept, so that mask mass concentrates on the most effective pixels.
        largest = slope.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        self.mask = self.mask + STEP * slope / largest
        self.bound(scale)
        self.pattern = (self.pattern + STEP * gradient_of(self.pattern).sign()).clamp(0, 1)

    def bound(self, scale: float) -> None:
        """Bring the masks back to ``scale`` times the mass."""
        self.mask = onto_mass(self.mask, scale * self.mass)


def onto_mass(
    masks: Float[Tensor, "n 1 height width"], mass: float | int
) -> Float[Tensor, "n 1 height width"]:
    """The nearest masks in [0, 1] whose mean is at most ``mass``.

    They are ``clamp(m - t, 0, 1)`` with the smallest t >= 0 that suffices, found by bisection.
    """
    low = torch.zeros(len(masks), 1, 1, 1, device=masks.device)
    high = masks.amax(dim=(1, 2, 3), keepdim=True).clamp_min(0)
    fits = masks.clamp(0, 1).mean(dim=(1, 2, 3), keepdim=True) <= mass
    for _ in range(30):
        middle = (low + high) / 2
        light = (masks - middle).clamp(0, 1).mean(dim=(1, 2, 3), keepdim=True) <= mass
        low, high = torch.where(light, low, middle), torch.where(light, middle, high)
    return (masks - torch.where(fits, 0.0, high)).clamp(0, 1)

"""Universal-perturbation training: a student that no fixed addition to an image can lead.

A backdoor that a student inherits is a universal perturbation: one addition to the pixels that
sends any image to one class. So one perturbation is kept for every class; a part of each batch
wears them, the student learns the true label there, and the same backward pass moves each
perturbation towards its class. No trigger is needed, and no second pass.

Sources: Moosavi-Dezfooli et al. 2017, arXiv 1610.08401 (universal perturbations); Shafahi et
al. 2020, arXiv 1811.11304 (training against one in a single pass). Differences: one perturbation
a class, driven towards that class rather than away from the truth; the student keeps its
distillation losses on the perturbed images, against the teacher's view of the clean ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustkd.errors import UsageError
from robustkd.training import check_positive
from robustkd.types import Images, Labels, Logits, PerSample


class Perturbed(NamedTuple):
    """A batch whose first ``worn`` images wear the perturbation of the class in ``toward``."""

    images: Images
    worn: int
    toward: Labels


class UniversalPerturbations(nn.Module):
    """One perturbation a class in an L-infinity ball, stepped by the student's own training.

    Args:
        classes: Number of classes.
        image_shape: Channels, height and width.
        epsilon: Radius of the ball in pixel units, in (0, 1].
        share: Part of each batch that is perturbed, in (0, 1].
        step: Length of a step in pixel units; a tenth of ``epsilon`` when None.
        seed: Of the first perturbations and of the classes drawn.

    Raises:
        UsageError: If a number is out of range.
    """

    delta: Float[Tensor, "classes channels height width"]

    def __init__(
        self,
        classes: int,
        image_shape: tuple[int, int, int],
        *,
        epsilon: float = 0.15,
        share: float = 0.5,
        step: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive(epsilon=epsilon, share=share, step=epsilon / 10 if step is None else step)
        if max(epsilon, share) > 1:
            raise UsageError(f"epsilon is {epsilon} and share {share}; expected at most 1")
        self.epsilon, self.share = epsilon, share
        self.step_size = epsilon / 10 if step is None else step
        self._random = torch.Generator().manual_seed(seed)
        start = torch.rand((classes, *image_shape), generator=self._random) * 2 - 1
        self.register_buffer("delta", start * epsilon)

    def perturb(self, images: Images, labels: Labels) -> Perturbed:
        """Dress a share of a batch, each image for a random class that is not its own.

        Images stay in [0, 1]; the result carries gradients to :attr:`delta`.
        """
        count = max(1, round(self.share * len(images)))
        classes = len(self.delta)
        shift = torch.randint(1, classes, (count,), generator=self._random).to(labels.device)
        toward = (labels[:count] + shift) % classes
        self.delta = self.delta.detach().to(images.device).requires_grad_()
        dressed = (images[:count] + self.delta[toward]).clamp(0, 1)
        seen = torch.cat([dressed, images[count:]])
        return Perturbed(seen.contiguous(memory_format=torch.channels_last), count, toward)

    @torch.no_grad()
    def advance(self) -> None:
        """Step every perturbation that was worn up the gradient of the last backward pass."""
        if self.delta.grad is None:
            return
        # Gradients of a half-precision pass that overflowed may hold NaN: they give no direction.
        moved = self.delta + self.step_size * self.delta.grad.nan_to_num().sign()
        self.delta = moved.clamp(-self.epsilon, self.epsilon)


def led_astray(logits: Logits, labels: Labels, toward: Labels) -> PerSample:
    """``softplus(z_toward - z_label)``: how far the perturbation's class beats the true one.

    The student goes down this loss, the perturbation up: one backward pass serves both.
    """
    gap = logits.gather(1, toward[:, None]) - logits.gather(1, labels[:, None])
    return nn.functional.softplus(gap.squeeze(1))

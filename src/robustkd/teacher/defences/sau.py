r"""Shared adversarial unlearning (SAU).

If one perturbation makes the original network :math:`h` and the copy :math:`f_\theta` predict the
same wrong class, the copy still has the backdoor. Perturbations of single images within an
L-infinity ball are optimised towards that,

.. math:: \max_{\|\epsilon\|_\infty \le \rho} \; \beta_1 \tfrac12 \left(
    L_{ce}(f_\theta(\tilde x), y) + L_{ce}(h(\tilde x), y) \right)
    - \beta_2 \mathrm{JS}(f_\theta(\tilde x) \| h(\tilde x)),

and unlearned: with :math:`\tilde y = \arg\max h(\tilde x)`,

.. math:: \min_\theta \; L_{ce}(f_\theta(x), y)
    - \frac{\lambda}{n} \sum_{\tilde y \ne y} \log(1 - f_\theta(\tilde x)_{\tilde y})

Source: Wei, Zhang, Zha, Wu, *Shared Adversarial Unlearning*, NeurIPS 2023, arXiv 2307.10562.
Settings of the authors' code: radius 0.2, 5 sign steps of 0.2 from the corner +0.2, beta 0.01 and
1, lambda 1, Adam, BatchNorm's statistics kept, a network's own wrong class no longer pushed once
it is reached. Differences: larger learning rate and fewer steps, since networks are small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustkd.core.types import Batch, DataSource, Images, Labels, Logits, PerSample
from robustkd.core.validation import check_count, check_not_negative, check_positive, check_share
from robustkd.teacher.defences.base import Defended
from robustkd.teacher.defences.tuning import Tuning, begin, tune
from robustkd.training.inference import frozen_copy

_LEAST = 1e-6
_TUNING = Tuning(lr=1e-3, momentum=0.0, weight_decay=0.0)


@dataclass(frozen=True)
class SAU:
    """Unlearn perturbations for which original and copy predict the same wrong class.

    Attributes:
        radius: Radius of the L-infinity ball in pixel units, in (0, 1].
        steps: Number of sign steps per batch, at least 1.
        step_size: Size of each step in pixel units, above 0.
        adversarial: beta_1, weight of the cross-entropy, at least 0.
        shared: beta_2, weight of the agreement of the two networks, at least 0.
        unlearn: lambda, weight of the shared adversarial risk, at least 0.
        tuning: Optimiser and number of epochs.
    """

    radius: float = 0.2
    steps: int = 5
    step_size: float = 0.2
    adversarial: float = 0.01
    shared: float = 1.0
    unlearn: float = 1.0
    tuning: Tuning = _TUNING

    def __post_init__(self) -> None:
        check_share(radius=self.radius)
        check_count(steps=self.steps)
        check_positive(step_size=self.step_size)
        check_not_negative(adversarial=self.adversarial, shared=self.shared, unlearn=self.unlearn)

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy; see :class:`robustkd.teacher.defences.base.Defence`."""
        work = begin(network, clean, batch_size=self.tuning.batch_size, seed=seed)
        reference, student = frozen_copy(network), work.network

        def gradients(batch: Batch) -> Tensor:
            images = batch.images + self.perturbation(student, reference, batch)
            with torch.no_grad():
                wrong = reference(images).argmax(1)
            clean_logits, led = student(torch.cat([batch.images, images])).chunk(2)
            loss = F.cross_entropy(clean_logits, batch.labels)
            loss = loss + self.unlearn * shared_risk(led, wrong, batch.labels)
            loss.backward()
            return loss

        tune(work, gradients, self.tuning, seed=work.seed, label="SAU", training=False)
        return work.finish()

    def batches(self, images: int) -> int:
        """Return the number of training batches for a number of images."""
        return self.tuning.batches(images)

    def perturbation(self, student: nn.Module, reference: nn.Module, batch: Batch) -> Images:
        """Optimise one perturbation within the ball for each image."""
        delta = torch.full_like(batch.images, self.radius)
        with torch.no_grad():
            homes = student(batch.images).argmax(1), reference(batch.images).argmax(1)
        for _ in range(self.steps):
            delta.requires_grad_()
            images = batch.images + delta
            loss = self._drive(student(images), reference(images), homes, batch.labels)
            (slope,) = torch.autograd.grad(loss, [delta])
            delta = (delta.detach() - self.step_size * slope.sign()).clamp(
                -self.radius, self.radius
            )
        return delta

    def _drive(
        self, mine: Logits, theirs: Logits, homes: tuple[Labels, Labels], labels: Labels
    ) -> Tensor:
        """Return the loss that the perturbations minimise, a scalar: the mean over the images."""
        stays = [said.argmax(1) == home for said, home in zip((mine, theirs), homes, strict=True)]
        leaving = sum(
            (F.cross_entropy(said, labels, reduction="none") * stay)
            for said, stay in zip((mine, theirs), stays, strict=True)
        )
        apart = stays[0] | stays[1] | (mine.argmax(1) != theirs.argmax(1))
        gap = jensen_shannon(mine.softmax(1), theirs.softmax(1)) * apart
        return (self.shared * gap - 0.5 * self.adversarial * leaving).mean()


def jensen_shannon(one: Float[Tensor, "n classes"], other: Float[Tensor, "n classes"]) -> PerSample:
    """Compute the Jensen-Shannon divergence in nats, in [0, log 2], for each image."""
    one, other = one.clamp_min(1e-8), other.clamp_min(1e-8)
    middle = ((one + other) / 2).log()
    terms = one * (one.log() - middle) + other * (other.log() - middle)
    return terms.sum(1) / 2


def shared_risk(led: Logits, wrong: Labels, labels: Labels) -> Tensor:
    """Compute the mean of ``-log(1 - p)`` over images that the original network misclassifies.

    Args:
        led: Logits of the copy for perturbed images.
        wrong: Predictions of the original network for these images.
        labels: True classes; an image whose prediction equals its label counts as 0.
    """
    chances = led.softmax(1).gather(1, wrong[:, None]).squeeze(1)
    risk = -torch.log((1 - chances).clamp_min(_LEAST))
    return (risk * (wrong != labels)).mean()

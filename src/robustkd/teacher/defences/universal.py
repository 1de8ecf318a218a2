r"""Universal adversarial training: one perturbation for all images and classes.

.. math:: \min_\theta \max_{\|\delta\|_\infty \le \epsilon} \sum_i
    \min(L_{ce}(f_\theta(x_i + \delta), y_i), \beta)

The perturbation delta is updated by the sign of its gradient, and theta by SGD.

Source: Shafahi, Najibi, Xu, Dickerson, Davis, Goldstein, *Universal Adversarial Training*, AAAI
2020, arXiv 1811.11304. The method was proposed against universal perturbations, not backdoors, and
is the closest relative of our hardening. Differences: epsilon is 0.2, the radius of SAU and of our
hardening, where the paper uses 8/255; the loss of the clean images is added, without which clean
accuracy falls at that radius; delta starts at a random corner, and pixels stay in [0, 1]. In the
paper, one backward pass serves both updates. Here there are two, since only the objective of delta
has the bound beta; theta is trained by the cross-entropy itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.core.types import Batch, DataSource
from robustkd.core.validation import check_positive, check_share
from robustkd.teacher.defences.base import Defended
from robustkd.teacher.defences.tuning import FINE_TUNING, Tuning, begin, tune


@dataclass(frozen=True)
class UniversalTraining:
    """Train against a single perturbation that is optimised at the same time.

    Attributes:
        epsilon: Radius of the L-infinity ball in pixel units, in (0, 1].
        step_size: Size of the perturbation's sign step per batch, in pixel units, above 0.
        ceiling: beta, upper bound of an image's loss in the perturbation's objective, above 0.
        tuning: Optimiser and number of epochs.
    """

    epsilon: float = 0.2
    step_size: float = 0.02
    ceiling: float = 9.0
    tuning: Tuning = FINE_TUNING

    def __post_init__(self) -> None:
        check_share(epsilon=self.epsilon)
        check_positive(step_size=self.step_size, ceiling=self.ceiling)

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy; see :class:`robustkd.teacher.defences.base.Defence`."""
        work = begin(network, clean, batch_size=self.tuning.batch_size, seed=seed)
        like = work.batches().images[:1]
        corners = torch.rand(like.shape, generator=torch.Generator().manual_seed(work.seed))
        delta = ((corners - 0.5).sign() * self.epsilon).to(like).requires_grad_()
        student = work.network

        def gradients(batch: Batch) -> Tensor:
            perturbed = (batch.images + delta).clamp(0, 1)
            plain, led = student(torch.cat([batch.images, perturbed])).chunk(2)
            losses = F.cross_entropy(led, batch.labels, reduction="none")
            loss = (F.cross_entropy(plain, batch.labels) + losses.mean()) / 2
            gain = losses.clamp_max(self.ceiling).mean()
            (slope,) = torch.autograd.grad(gain, [delta], retain_graph=True)
            loss.backward()
            with torch.no_grad():
                delta.add_(self.step_size * slope.sign()).clamp_(-self.epsilon, self.epsilon)
            delta.grad = None
            return loss

        tune(work, gradients, self.tuning, seed=work.seed, label="universal training")
        return work.finish()

    def batches(self, images: int) -> int:
        """Return the number of training batches for a number of images."""
        return self.tuning.batches(images)

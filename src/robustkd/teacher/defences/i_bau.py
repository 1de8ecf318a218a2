r"""I-BAU: unlearning a universal perturbation through the implicit hypergradient.

.. math:: \min_\theta \; L_{ce}(f_\theta(x + \delta^*(\theta)), y), \qquad
    \delta^*(\theta) = \arg\max_{\|\delta\|_2 \le C} L_{ce}(f_\theta(x + \delta), y)
        - 0.001 \|\delta\|^2

The gradient with respect to theta includes its effect on :math:`\delta^*`, which is computed by a
fixed-point iteration with K products with the inner Hessian
(:func:`robustkd.training.hypergradient.hypergradient`).

Source: Zeng, Chen, Park, Mao, Jin, Jia, *Adversarial Unlearning of Backdoors via Implicit
Hypergradient*, ICLR 2022, arXiv 2110.03735. Settings of the authors' code: 5 rounds, radius 10 in
normalised pixels, inner SGD with rate 10, K of 5 with step 0.1, Adam, perturbations on a share of
each batch, network in eval mode during the inner problem. Differences: pixels are in [0, 1],
so the radius is in those units and scales with the square root of the number of values; radius 0.1
and a tenth of each batch were chosen because 0.2 and a half cost 20 points of clean accuracy; the
iteration stops if it diverges (the inner problem has no minimum there).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.core.types import Batch, DataSource, Images, Labels
from robustkd.core.validation import check_count, check_rates, check_share
from robustkd.models.features.taps import frozen_modes
from robustkd.teacher.defences.base import ONCE, Defended
from robustkd.teacher.defences.tuning import Cleaning, Tuning, begin, full_batches, tune
from robustkd.training.hypergradient import hypergradient, twice_differentiable

_SHRINK = 0.001
_TUNING = Tuning(epochs=2, lr=1e-3, momentum=0.0, weight_decay=0.0)


@dataclass(frozen=True)
class IBAU:
    """Minimax training against one universal perturbation.

    Attributes:
        rounds: Number of times that a perturbation is trained and unlearned, at least 1.
        radius: Largest root mean square of the perturbation over the image's values, in (0, 1];
            0.1 is a Euclidean norm of 5.5 for 3 x 32 x 32 values.
        inner_lr: Learning rate of the perturbation, above 0.
        products: K, number of Hessian products of the hypergradient, at least 1.
        share: Share of each batch that is perturbed, in (0, 1].
        tuning: Optimiser and number of epochs of each round.
    """

    rounds: int = field(default=5, metadata=ONCE)
    radius: float = 0.1
    inner_lr: float = 10.0
    products: int = 5
    share: float = 0.1
    tuning: Tuning = _TUNING

    def __post_init__(self) -> None:
        check_count(rounds=self.rounds, products=self.products)
        check_share(radius=self.radius, share=self.share)
        check_rates(inner_lr=self.inner_lr)

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy; see :class:`robustkd.teacher.defences.base.Defence`."""
        work = begin(network, clean, batch_size=self.tuning.batch_size, seed=seed)
        fooled = []
        for turn in range(self.rounds):
            delta, share = self._perturbation(work)
            fooled.append(share)
            tune(
                work,
                partial(self._unlearn, work.network, delta=delta),
                self.tuning,
                seed=work.seed + turn,
                label=f"I-BAU, round {turn + 1}",
                training=False,
            )
        return work.finish(fooled=fooled)

    def batches(self, images: int) -> int:
        """Return the number of training batches for a number of images."""
        return self.rounds * (
            full_batches(images, self.tuning.batch_size) + self.tuning.batches(images)
        )

    def _perturbation(self, work: Cleaning) -> tuple[Tensor, float]:
        """Train a universal perturbation; return it with the share of images that it changes."""
        delta = torch.zeros_like(work.batches().images[:1], requires_grad=True)
        optimiser = torch.optim.SGD([delta], lr=self.inner_lr)
        moved = seen = 0
        with frozen_modes(work.network):
            for _ in range(work.epoch):
                images = work.batches().images
                with torch.no_grad():
                    classes = work.network(images).argmax(1)
                logits = work.network(images + delta)
                loss = self._inner(logits, classes, delta)
                (delta.grad,) = torch.autograd.grad(loss, [delta])
                optimiser.step()
                with torch.no_grad():
                    delta.mul_(min(1.0, self._norm(delta) / float(delta.norm().clamp_min(1e-12))))
                moved += int((logits.argmax(1) != classes).sum())
                seen += len(images)
        return delta.detach(), moved / seen

    def _norm(self, delta: Tensor) -> float:
        return float(self.radius * delta.numel() ** 0.5)

    @staticmethod
    def _inner(logits: Tensor, classes: Labels, delta: Tensor) -> Tensor:
        """Return the loss that the perturbation minimises, a scalar."""
        return -F.cross_entropy(logits, classes) + _SHRINK * delta.square().sum()

    def _unlearn(self, network: nn.Module, batch: Batch, delta: Tensor) -> Tensor:
        """Set the gradients of the weights to the hypergradient of the outer loss."""
        delta = delta.clone().requires_grad_()
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        with twice_differentiable():
            inner = self._inner(network(batch.images + delta), batch.labels, delta)
            outer = F.cross_entropy(network(self._perturbed(batch.images, delta)), batch.labels)
        found = hypergradient(
            inner, outer, [delta], weights, steps=self.products, step_size=0.1
        ).total()
        for weight, gradient in zip(weights, found, strict=True):
            weight.grad = gradient
        return outer

    def _perturbed(self, images: Images, delta: Tensor) -> Images:
        count = max(1, round(self.share * len(images)))
        return torch.cat([images[:count] + delta, images[count:]])

r"""Adversarial neuron pruning (ANP).

A mask m in [0, 1] scales the BatchNorm weight of each channel. It is trained to keep the clean
accuracy under the worst relative perturbations of weights and biases of at most epsilon:

.. math:: \min_m \; \alpha L(m \odot w, b)
    + (1 - \alpha) \max_{|\delta|, |\xi| \le \epsilon} L((m + \delta) \odot w, (1 + \xi) \odot b)

Channels of a backdoor are sensitive to such perturbations, so their masks fall; those at or below
a threshold are pruned.

Source: Wu, Wang, *Adversarial Neuron Pruning Purifies Backdoored Deep Models*, NeurIPS 2021, arXiv
2110.14430. Settings of the paper: epsilon 0.4, alpha 0.2, learning rate 0.2, one sign step inside
from a random start. Differences: the perturbation is the sign step alone, where the authors' code
adds it to the random start, so that theirs can be twice as large; 500 steps of 64 images, not 2000
of 128; the threshold is the largest whose clean validation accuracy stays within a budget, where
the paper fixes 0.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.progress import track
from robustkd.core.types import Batch, DataSource
from robustkd.core.validation import check_count, check_positive, check_rates, check_share
from robustkd.models.features.channels import scaled
from robustkd.models.features.taps import frozen_modes
from robustkd.teacher.defences.base import ONCE, Defended
from robustkd.teacher.defences.pruning import prunable, prune_by_masks
from robustkd.teacher.defences.tuning import begin, seeded
from robustkd.training.inference import frozen_copy

THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(20))
"""0 to 0.95 in steps of 0.05, as in the authors' code."""

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class ANP:
    """Prune the channels that are most sensitive to perturbations.

    Attributes:
        epsilon: Largest relative perturbation of a weight or a bias, above 0.
        alpha: Weight of the unperturbed loss, in [0, 1].
        steps: Optimiser steps of the masks, at least 1.
        lr: Learning rate of the masks, above 0.
        batch_size: Images per step, at least 2.
        budget: Share of clean validation accuracy that pruning may cost, in [0, 1).
    """

    epsilon: float = 0.4
    alpha: float = 0.2
    steps: int = field(default=500, metadata=ONCE)
    lr: float = 0.2
    batch_size: int = 64
    budget: float = 0.03

    def __post_init__(self) -> None:
        check_positive(epsilon=self.epsilon)
        check_rates(lr=self.lr)
        check_share(zero=True, alpha=self.alpha)
        check_count(steps=self.steps)
        check_count(least=2, batch_size=self.batch_size)
        check_share(zero=True, one=False, budget=self.budget)

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy; see :class:`robustkd.teacher.defences.base.Defence`."""
        work = begin(network, clean, batch_size=self.batch_size, seed=seed)
        scratch = frozen_copy(network)
        masks = {
            path: torch.ones_like(norm.weight, requires_grad=True)
            for path, norm in prunable(scratch).items()
        }
        optimiser = torch.optim.SGD(masks.values(), self.lr, momentum=0.9)
        noise = torch.Generator(next(iter(masks.values())).device).manual_seed(work.seed)
        # Train mode, as in the authors' code: BatchNorm normalises by the batch.
        with (
            seeded(device_of(scratch), work.seed),
            frozen_modes(scratch, training=True),
            track("ANP", self.steps) as update,
        ):
            for _ in range(self.steps):
                batch = work.batches()
                optimiser.zero_grad(set_to_none=True)
                loss = self.loss(scratch, masks, batch, noise)
                loss.backward()
                optimiser.step()
                clamp(masks)
                update(loss=float(loss.detach()))
        return prune_by_masks(work, detached(masks), THRESHOLDS, self.budget)

    def batches(self, images: int) -> int:
        """Return the number of training batches for a number of images."""
        del images
        return self.steps

    def loss(
        self, network: nn.Module, masks: Masks, batch: Batch, noise: torch.Generator
    ) -> Tensor:
        """Return the objective, a scalar, at the perturbation that one sign step finds."""

        def start(like: Tensor) -> Tensor:
            drawn = torch.rand(like.shape, generator=noise, device=like.device)
            return ((2 * drawn - 1) * self.epsilon).requires_grad_()

        delta = {path: start(mask) for path, mask in masks.items()}
        xi = {path: start(mask) for path, mask in masks.items()}
        found = perturbed(network, detached(masks), delta, xi, batch)
        leaves = [*delta.values(), *xi.values()]
        gradients = torch.autograd.grad(found, leaves, materialize_grads=True)
        signs = [g.sign() * self.epsilon for g in gradients]
        worst_delta = dict(zip(delta, signs[: len(delta)], strict=True))
        worst_xi = dict(zip(xi, signs[len(delta) :], strict=True))
        robust = perturbed(network, masks, worst_delta, worst_xi, batch)
        natural = F.cross_entropy(scaled(network, batch.images, masks), batch.labels)
        return self.alpha * natural + (1 - self.alpha) * robust


def perturbed(network: nn.Module, masks: Masks, delta: Masks, xi: Masks, batch: Batch) -> Tensor:
    """Compute the cross-entropy with weights times ``mask + delta`` and biases times ``1 + xi``."""
    weights = {path: mask + delta[path] for path, mask in masks.items()}
    biases = {path: 1 + factor for path, factor in xi.items()}
    return F.cross_entropy(scaled(network, batch.images, weights, biases), batch.labels)


@torch.no_grad()
def clamp(masks: Masks) -> None:
    """Clip masks to [0, 1], in place."""
    for mask in masks.values():
        mask.clamp_(0.0, 1.0)


def detached(masks: Masks) -> Masks:
    """Return the masks without gradients."""
    return {path: mask.detach() for path, mask in masks.items()}

r"""Reconstructive neuron pruning (RNP): unlearn the clean task, recover it, and prune.

1. Unlearn: :math:`\max_\theta L_{ce}(f_\theta(x), y)` on a few clean images, until clean accuracy
   falls to a floor; what remains is mostly the backdoor.
2. Recover: :math:`\min_{m \in [0, 1]} L_{ce}(f_{m \odot \theta}(x), y)`, a mask on the channels of
   the unlearned network; the masks of backdoor channels fall.
3. Prune the channels with a small mask in the *original* network.

Source: Li, Lyu, Ma, Koren, Lyu, Li, Jiang, *Reconstructive Neuron Pruning for Backdoor Defense*,
ICML 2023, arXiv 2305.14876. Settings of the authors' code: unlearning by SGD with rate 0.01 and
gradients clipped at 20 down to 20 % training accuracy, masks by SGD with rate 0.2 and the loss
times 0.2. Differences: accuracy is measured in every step, not once per epoch, since the ascent can
diverge within an epoch, and masks of a network with a huge loss contain no information; the
threshold is the largest whose clean validation accuracy stays within a budget; the learning rate of
the masks is 0.02, since at 0.2 no threshold meets that budget on small networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.progress import track
from robustkd.core.types import DataSource
from robustkd.core.validation import check_count, check_rates, check_share
from robustkd.models.features.channels import norms, scaled
from robustkd.models.features.taps import frozen_modes
from robustkd.teacher.defences.anp import THRESHOLDS, clamp, detached
from robustkd.teacher.defences.base import ONCE, Defended
from robustkd.teacher.defences.pruning import prunable, prune_by_masks
from robustkd.teacher.defences.tuning import (
    Cleaning,
    begin,
    full_batches,
    seeded,
    trainable_copy,
)
from robustkd.training.learners import hit_rate

_CLIP = 20.0
_LOSS_SCALE = 0.2


@dataclass(frozen=True)
class RNP:
    """Unlearn the clean task, recover it by a mask, and prune.

    Attributes:
        floor: Accuracy on a batch at which unlearning ends, in (0, 1).
        unlearn_lr: Learning rate of the unlearning, above 0.
        unlearn_epochs: Largest number of epochs of the unlearning, at least 1.
        lr: Learning rate of the masks, above 0.
        steps: Optimiser steps of the masks, at least 1.
        batch_size: Images per step, at least 2.
        budget: Share of clean validation accuracy that pruning may cost, in [0, 1).
    """

    floor: float = 0.2
    unlearn_lr: float = 0.01
    unlearn_epochs: int = field(default=20, metadata=ONCE)
    lr: float = 0.02
    steps: int = field(default=40, metadata=ONCE)
    batch_size: int = 128
    budget: float = 0.03

    def __post_init__(self) -> None:
        check_share(one=False, floor=self.floor)
        check_rates(unlearn_lr=self.unlearn_lr, lr=self.lr)
        check_count(unlearn_epochs=self.unlearn_epochs, steps=self.steps)
        check_count(least=2, batch_size=self.batch_size)
        check_share(zero=True, one=False, budget=self.budget)

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy; see :class:`robustkd.teacher.defences.base.Defence`."""
        work = begin(network, clean, batch_size=self.batch_size, seed=seed)
        scratch = trainable_copy(network)
        prunable(scratch)
        with seeded(device_of(scratch), work.seed):
            self._unlearn(work, scratch)
            masks = self._recover(work, scratch.requires_grad_(False))
        return prune_by_masks(work, masks, THRESHOLDS, self.budget)

    def batches(self, images: int) -> int:
        """Return the largest number of training batches for a number of images."""
        return self.unlearn_epochs * full_batches(images, self.batch_size) + self.steps

    def _unlearn(self, work: Cleaning, scratch: nn.Module) -> None:
        """Maximise the loss in place, until the accuracy of a batch is at the floor."""
        optimiser = torch.optim.SGD(
            scratch.parameters(), self.unlearn_lr, momentum=0.9, weight_decay=5e-4
        )
        steps = self.unlearn_epochs * work.epoch
        with frozen_modes(scratch, training=True), track("unlearn", steps) as update:
            for _ in range(steps):
                batch = work.batches()
                logits = scratch(batch.images)
                hits = float(hit_rate(logits, batch.labels))
                update(accuracy=hits)
                if hits <= self.floor:
                    break
                optimiser.zero_grad(set_to_none=True)
                (-F.cross_entropy(logits, batch.labels)).backward()
                nn.utils.clip_grad_norm_(scratch.parameters(), _CLIP)
                optimiser.step()

    def _recover(self, work: Cleaning, scratch: nn.Module) -> dict[str, Tensor]:
        """Train the masks with which the unlearned network recovers the clean task."""
        masks = {
            path: torch.ones_like(norm.weight, requires_grad=True)
            for path, norm in norms(scratch).items()
        }
        optimiser = torch.optim.SGD(masks.values(), self.lr, momentum=0.9)
        with frozen_modes(scratch, training=True), track("recover", self.steps) as update:
            for _ in range(self.steps):
                batch = work.batches()
                optimiser.zero_grad(set_to_none=True)
                loss = F.cross_entropy(scaled(scratch, batch.images, masks), batch.labels)
                (_LOSS_SCALE * loss).backward()
                optimiser.step()
                clamp(masks)
                update(loss=float(loss.detach()))
        return detached(masks)

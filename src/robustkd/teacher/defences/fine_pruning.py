r"""Fine-pruning: prune the channels that are inactive on clean images, then fine-tune.

Channels of the last convolutional layer are pruned in the order of their mean activation on clean
images, the smallest first, until clean validation accuracy falls by more than a budget. The last
state within the budget is fine-tuned, and pruned channels stay pruned.

Source: Liu, Dolan-Gavitt, Garg, *Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
Networks*, RAID 2018, arXiv 1805.12185. Differences: a channel is cut where the linear classifier
reads it, which after global average pooling is the same as cutting the channel; in networks that
flatten positions, single positions are cut. The accuracy is measured every 1/32 of the channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.types import DataSource
from robustkd.core.validation import check_share
from robustkd.models.features.stored import check_stored
from robustkd.models.features.taps import frozen_modes
from robustkd.teacher.defences.base import Defended
from robustkd.teacher.defences.fine_tuning import supervised
from robustkd.teacher.defences.head import head_of
from robustkd.teacher.defences.pruning import last_within
from robustkd.teacher.defences.tuning import FINE_TUNING, Tuning, begin, tune
from robustkd.training.inference import batch_size_for

_PARTS = 32


@dataclass(frozen=True)
class FinePruning:
    """Prune inactive channels of the last layer, then fine-tune.

    Attributes:
        budget: Share of clean validation accuracy that pruning may cost before fine-tuning, in
            [0, 1).
        tuning: Optimiser and number of epochs of the fine-tuning.
    """

    budget: float = 0.1
    tuning: Tuning = FINE_TUNING

    def __post_init__(self) -> None:
        check_share(zero=True, one=False, budget=self.budget)

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy; see :class:`robustkd.teacher.defences.base.Defence`."""
        work = begin(network, clean, batch_size=self.tuning.batch_size, seed=seed)
        head = head_of(work.network, clean)
        check_stored(work.network, [head], who="this defence")
        order = mean_activation(work.network, head, clean).argsort(stable=True)
        whole = head.weight.detach().clone()

        def accuracy(count: int) -> float:
            cut(head, whole, order[:count])
            return work.accuracy()

        total = len(order)
        counts = sorted({max(1, round(total * part / _PARTS)) for part in range(1, _PARTS)})
        count, curve = last_within(counts, accuracy, work.accuracy_before - self.budget)
        dead = order[: count or 0]
        cut(head, whole, dead)
        tune(
            work,
            supervised(work.network),
            self.tuning,
            seed=work.seed,
            label="fine-prune",
            after_step=lambda: cut(head, head.weight.detach(), dead),
        )
        return work.finish(pruned=len(dead), channels=total, curve=[list(point) for point in curve])

    def batches(self, images: int) -> int:
        """Return the number of training batches for a number of images."""
        return self.tuning.batches(images)


@torch.no_grad()
def cut(head: nn.Linear, weight: Tensor, channels: Tensor) -> None:
    """Set the weights of a linear layer, with zeros for some of its inputs."""
    head.weight.copy_(weight)
    head.weight[:, channels] = 0.0


@torch.no_grad()
def mean_activation(network: nn.Module, head: nn.Linear, clean: DataSource) -> Tensor:
    """Compute the mean of each input of a linear layer over the training images."""
    size = batch_size_for(clean.image_shape)
    total = torch.zeros(head.in_features, device=head.weight.device)

    def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        total.add_(inputs[0].float().sum(0))

    hook = head.register_forward_pre_hook(add)
    try:
        with frozen_modes(network):
            for batch in clean.batches("train", batch_size=size, device=device_of(network)):
                network(batch.images)
    finally:
        hook.remove()
    return total / clean.size("train")

r"""Channel Lipschitzness pruning (CLP), which needs clean images only to choose its threshold.

The upper bound of channel k's Lipschitz constant is the spectral norm of its filter
:math:`w_k` (input channels x kernel positions), times the factor of a BatchNorm that follows:

.. math:: \sigma_k = \|w_k\|_2 \cdot |\gamma_k / \sqrt{\mathrm{var}_k + \varepsilon}|

Channels with :math:`\sigma_k > \mu + u s` are pruned, with mean and standard deviation s over the
layer.

Source: Zheng, Tang, Li, Liu, *Data-free Backdoor Removal based on Channel Lipschitzness*, ECCV
2022, arXiv 2208.03111. Differences: the BatchNorm that follows a convolution is found by a forward
pass, so that pre-activation networks are supported: a convolution whose output is added to another
has no BatchNorm of its own, and its filter is pruned. u is the smallest of a list whose clean
validation accuracy stays within a budget, where the paper uses 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import starmap

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.first_batch import first_batch
from robustkd.core.types import DataSource
from robustkd.core.validation import check_not_negative, check_share
from robustkd.models.features.channels import lipschitz
from robustkd.models.features.probing import Layers, batchnorm_after
from robustkd.models.features.stored import check_stored
from robustkd.teacher.defences.base import Defended
from robustkd.teacher.defences.pruning import prune_within
from robustkd.teacher.defences.tuning import begin


@dataclass(frozen=True)
class CLP:
    """Prune the channels with an unusually large Lipschitz constant.

    Attributes:
        factors: Values of u to try, at least 0 and in decreasing order, so that more and more
            channels are pruned.
        budget: Share of clean validation accuracy that pruning may cost, in [0, 1).
    """

    factors: tuple[float, ...] = (5.0, 4.5, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0)
    budget: float = 0.03

    def __post_init__(self) -> None:
        for factor in self.factors:
            check_not_negative(factors=factor)
        if not self.factors or list(self.factors) != sorted(self.factors, reverse=True):
            raise UsageError(
                f"factors are {self.factors}; expected at least one, in decreasing order"
            )
        check_share(zero=True, one=False, budget=self.budget)

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy; see :class:`robustkd.teacher.defences.base.Defence`."""
        work = begin(network, clean, batch_size=2, seed=seed)
        where = device_of(network)
        images = first_batch(clean, "validation", batch_size=2, device=where).images
        layers = batchnorm_after(work.network, images)
        if not layers:
            raise UsageError(f"{type(network).__name__} has no convolution; choose another defence")
        check_stored(work.network, starmap(_pruned, layers), who="this defence")
        found = prune_within(work, self.factors, lambda u: prune(layers, u), self.budget)
        return work.finish(
            factor=found.strength,
            pruned=found.pruned,
            channels=sum(conv.out_channels for conv, _ in layers),
            curve=found.curve,
        )

    def batches(self, images: int) -> int:
        """Return 0, since nothing is trained."""
        del images
        return 0


@torch.no_grad()
def prune(layers: Layers, u: float) -> int:
    """Prune outlying channels in place, and return their number."""
    pruned = 0
    for conv, norm in layers:
        bounds = lipschitz(conv, norm)
        dead = bounds > bounds.mean() + u * bounds.std(unbiased=False)
        module = _pruned(conv, norm)
        for tensor in (module.weight, module.bias):
            if tensor is not None:
                tensor[dead] = 0.0
        pruned += int(dead.sum())
    return pruned


def _pruned(conv: nn.Conv2d, norm: _BatchNorm | None) -> nn.Conv2d | _BatchNorm:
    """Return the layer whose weight and bias are set to zero to prune a channel."""
    return conv if norm is None or not norm.affine else norm

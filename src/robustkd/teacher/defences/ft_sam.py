r"""FT-SAM: fine-tuning with adaptive sharpness-aware minimisation.

.. math:: \min_\theta \max_{\|T_\theta^{-1} \epsilon\|_2 \le \rho} L_{ce}(f_{\theta + \epsilon}),
    \qquad \epsilon = \rho \frac{T_\theta^2 \nabla L}{\|T_\theta \nabla L\|_2}, \quad
    T_\theta = \mathrm{diag}(|\theta|)

Neurons of a backdoor have large weights; a perturbation in proportion to the weights moves them
most, and training against it shrinks them.

Source: Zhu, Wei, Shen, Fan, Wu, *Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware
Minimization*, ICCV 2023, arXiv 2304.11823; the step is that of Kwon et al. 2021, arXiv 2102.11600.
Settings as in BackdoorBench: rho 2, label smoothing 0.1. Differences: rate and number of epochs as
in :mod:`robustkd.teacher.defences.fine_tuning`. BatchNorm's running statistics follow
the unperturbed pass alone, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.core.types import Batch, DataSource
from robustkd.core.validation import check_positive, check_share
from robustkd.teacher.defences.base import Defended
from robustkd.teacher.defences.tuning import FINE_TUNING, Tuning, begin, tune

_TINY = 1e-12


@dataclass(frozen=True)
class FTSAM:
    """Fine-tune against the worst perturbation of the weights, relative to their size.

    Attributes:
        rho: Radius of the perturbation relative to the weights, above 0.
        smoothing: Label smoothing, in [0, 1).
        tuning: Optimiser and number of epochs.
    """

    rho: float = 2.0
    smoothing: float = 0.1
    tuning: Tuning = FINE_TUNING

    def __post_init__(self) -> None:
        check_positive(rho=self.rho)
        check_share(zero=True, one=False, smoothing=self.smoothing)

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy; see :class:`robustkd.teacher.defences.base.Defence`."""
        work = begin(network, clean, batch_size=self.tuning.batch_size, seed=seed)
        student = work.network
        weights = [weight for weight in student.parameters() if weight.requires_grad]

        def gradients(batch: Batch) -> Tensor:
            loss = self._loss(student, batch)
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            pairs = zip(weights, found, strict=True)
            given = [torch.zeros_like(w) if g is None else g for w, g in pairs]
            steps = adaptive_ascent(weights, given, rho=self.rho)
            with moved(weights, steps), still_statistics(student):
                self._loss(student, batch).backward()
            return loss

        tune(work, gradients, self.tuning, seed=work.seed, label="FT-SAM")
        return work.finish()

    def batches(self, images: int) -> int:
        """Return the number of training batches for a number of images."""
        return self.tuning.batches(images)

    def _loss(self, network: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(network(batch.images), batch.labels, label_smoothing=self.smoothing)


@torch.no_grad()
def adaptive_ascent(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], *, rho: float
) -> list[Tensor]:
    r"""Compute the perturbation :math:`\rho T^2 g / \|T g\|` with T = diag(\|w\|).

    Args:
        weights: w, any number of tensors; the norm is over all of them.
        gradients: g, of the same shapes.
        rho: Radius, above 0.

    >>> adaptive_ascent([torch.tensor([3.0, 0.0])], [torch.tensor([2.0, 5.0])], rho=1.0)
    [tensor([3., 0.])]
    """
    scaled = [weight.abs() * gradient for weight, gradient in zip(weights, gradients, strict=True)]
    norm = torch.stack([part.norm() for part in scaled]).norm().clamp_min(_TINY)
    return [rho * weight.abs() * part / norm for weight, part in zip(weights, scaled, strict=True)]


@contextmanager
def moved(weights: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
    """Add steps to the weights while the block lasts, and restore the exact weights afterwards."""
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, step in zip(weights, steps, strict=True):
            weight.add_(step)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


@contextmanager
def still_statistics(network: nn.Module) -> Iterator[None]:
    """Keep the running statistics of BatchNorm unchanged while the block lasts."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked for norm in norms]
    counted = [None if count is None else count.clone() for count in counts]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        for count, was in zip(counts, counted, strict=True):
            if count is not None and was is not None:
                count.copy_(was)

r"""Feature shift tuning (FST): a fresh linear classifier that is kept away from the old one.

.. math:: \min_{\phi, w} L_{ce}(w^T f_\phi(x), y) + \alpha \langle w, w_0 \rangle,
    \qquad \|w\|_2 = \|w_0\|_2

w is first initialised again. The features must shift to fit it, and clean images give the features
of the backdoor no reason to do so.

Source: Min, Qin, Shen, Cheng, *Towards Stable Backdoor Purification through Feature Shift Tuning*,
NeurIPS 2023, arXiv 2310.01875. Settings of the paper: alpha 0.2, 10 epochs, the norm
restored after each step. Differences: learning rate 0.05, not 0.01; the new weights have PyTorch's
default initialisation and are scaled to the old norm at once; the bias starts at zero. The second
term grows with the square of the old norm: use a smaller alpha if clean accuracy falls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.core.types import Batch, DataSource
from robustkd.core.validation import check_not_negative
from robustkd.models.features.stored import check_stored
from robustkd.teacher.defences.base import Defended
from robustkd.teacher.defences.head import head_of
from robustkd.teacher.defences.tuning import FINE_TUNING, Tuning, begin, tune


@dataclass(frozen=True)
class FST:
    """Fine-tune with a new classifier that must differ from the old one.

    Attributes:
        alpha: Weight of the inner product with the old classifier, at least 0.
        tuning: Optimiser and number of epochs.
    """

    alpha: float = 0.2
    tuning: Tuning = FINE_TUNING

    def __post_init__(self) -> None:
        check_not_negative(alpha=self.alpha)

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy; see :class:`robustkd.teacher.defences.base.Defence`."""
        work = begin(network, clean, batch_size=self.tuning.batch_size, seed=seed)
        head = head_of(work.network, clean)
        check_stored(work.network, [head], who="this defence")
        head.requires_grad_(True)  # The new classifier has to be trained.
        old = head.weight.detach().clone()
        renew(head, work.seed)
        project(head, old)

        def gradients(batch: Batch) -> Tensor:
            loss = F.cross_entropy(work.network(batch.images), batch.labels)
            loss = loss + self.alpha * (head.weight * old).sum()
            loss.backward()
            return loss

        tune(
            work,
            gradients,
            self.tuning,
            seed=work.seed,
            label="FST",
            after_step=lambda: project(head, old),
        )
        cosine = F.cosine_similarity(head.weight.detach().flatten(), old.flatten(), dim=0)
        return work.finish(cosine=float(cosine))

    def batches(self, images: int) -> int:
        """Return the number of training batches for a number of images."""
        return self.tuning.batches(images)


@torch.no_grad()
def renew(head: nn.Linear, seed: int) -> None:
    """Initialise the weights of a linear layer again, in place, and set its bias to zero."""
    bound = head.in_features**-0.5
    drawn = torch.rand(head.weight.shape, generator=torch.Generator().manual_seed(seed))
    head.weight.copy_((2 * drawn - 1) * bound)
    if head.bias is not None:
        head.bias.zero_()


@torch.no_grad()
def project(head: nn.Linear, old: Tensor) -> None:
    """Scale the weights to the norm of the old ones, in place."""
    head.weight.mul_(old.norm() / head.weight.norm().clamp_min(1e-12))

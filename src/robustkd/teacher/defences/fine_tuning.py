r"""Fine-tuning (FT): continue the training on clean images only.

.. math:: \min_\theta L_{ce}(f_\theta(x), y)

Source: the baseline of every paper on purification; as in Wu et al., *BackdoorBench*, NeurIPS
2022, arXiv 2206.12654: SGD with momentum 0.9, learning rate 0.01, cosine schedule. Differences:
Nesterov momentum; a larger learning rate and 10 epochs, not 100, since networks are small and the
clean set is as large as the attacker's and not 5 % of it: see
:data:`robustkd.teacher.defences.tuning.FINE_TUNING`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.core.types import Batch, DataSource
from robustkd.teacher.defences.base import Defended
from robustkd.teacher.defences.tuning import FINE_TUNING, Gradients, Tuning, begin, tune


@dataclass(frozen=True)
class FineTuning:
    """Fine-tune with the cross-entropy on clean images.

    Attributes:
        tuning: Optimiser and number of epochs.
    """

    tuning: Tuning = FINE_TUNING

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy; see :class:`robustkd.teacher.defences.base.Defence`."""
        work = begin(network, clean, batch_size=self.tuning.batch_size, seed=seed)
        tune(work, supervised(work.network), self.tuning, seed=work.seed, label="fine-tune")
        return work.finish()

    def batches(self, images: int) -> int:
        """Return the number of training batches for a number of images."""
        return self.tuning.batches(images)


def supervised(network: nn.Module) -> Gradients:
    """Return a function that computes the gradients of the mean cross-entropy of a network."""

    def gradients(batch: Batch) -> Tensor:
        loss = F.cross_entropy(network(batch.images), batch.labels)
        loss.backward()
        return loss

    return gradients

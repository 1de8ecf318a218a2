r"""Neural attention distillation (NAD): distil attention maps from a fine-tuned copy.

.. math:: \min_\theta L_{ce}(f_\theta(x), y)
    + \sum_l \beta_l \, \mathrm{mean} \left(
        \frac{A_l}{\|A_l\|_2} - \frac{A^T_l}{\|A^T_l\|_2} \right)^2,
    \qquad A_l = \sum_c |F_{l,c}|^2

where the teacher T is a fine-tuned copy of the network.

Source: Li, Lyu, Koren, Lyu, Li, Ma, *Neural Attention Distillation*, ICLR 2021, arXiv 2101.05930.
Settings of the authors' code: power 2, beta 500, 1000, 1000 for three stages (here 1000 for all but
the first), learning rate 0.1, 10 epochs of the teacher. Differences: stages are found in any
network; learning rate 0.05, see :data:`robustkd.teacher.defences.tuning.FINE_TUNING`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.first_batch import first_batch
from robustkd.core.types import Batch, DataSource, Features
from robustkd.core.validation import check_not_negative
from robustkd.models.features import taps
from robustkd.models.features.collect import layouts_of
from robustkd.models.features.layout import Layout
from robustkd.models.features.stages import taps_of
from robustkd.teacher.defences.base import Defended
from robustkd.teacher.defences.fine_tuning import supervised
from robustkd.teacher.defences.tuning import Gradients, Tuning, begin, trainable_copy, tune

_TUNING = Tuning(lr=0.05, weight_decay=1e-4)


@dataclass(frozen=True)
class NAD:
    """Fine-tune a copy, then distil its attention maps into the network.

    Attributes:
        first: beta of the first stage, at least 0.
        later: beta of every later stage, at least 0.
        teacher: Optimiser and number of epochs of the fine-tuning.
        tuning: Optimiser and number of epochs of the distillation.
    """

    first: float = 500.0
    later: float = 1000.0
    teacher: Tuning = _TUNING
    tuning: Tuning = _TUNING

    def __post_init__(self) -> None:
        check_not_negative(first=self.first, later=self.later)

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy; see :class:`robustkd.teacher.defences.base.Defence`."""
        work = begin(network, clean, batch_size=self.tuning.batch_size, seed=seed)
        layouts = stages_of(work.network, clean)
        names = tuple(layouts)
        teacher = trainable_copy(network)
        gradients = supervised(teacher)
        first, size = work, self.teacher.batch_size
        if size != self.tuning.batch_size:
            first = work.with_batches(size)
        tune(first, gradients, self.teacher, seed=work.seed, label="NAD, teacher", network=teacher)
        teacher.requires_grad_(False)
        with taps.read(teacher, names) as guide, taps.read(work.network, names) as features:
            learn = self._gradients(work.network, teacher, features, guide, layouts)
            tune(work, learn, self.tuning, seed=work.seed, label="NAD")
        return work.finish(stages=list(names))

    def batches(self, images: int) -> int:
        """Return the number of training batches for a number of images."""
        return self.teacher.batches(images) + self.tuning.batches(images)

    def _gradients(
        self,
        network: nn.Module,
        teacher: nn.Module,
        features: dict[str, Features],
        guide: dict[str, Features],
        layouts: Mapping[str, Layout],
    ) -> Gradients:
        betas = [self.first] + [self.later] * (len(layouts) - 1)

        def gradients(batch: Batch) -> Tensor:
            with torch.no_grad():
                teacher(batch.images)
            loss = F.cross_entropy(network(batch.images), batch.labels)
            for (name, layout), beta in zip(layouts.items(), betas, strict=True):
                own, theirs = layout.maps(features[name]), layout.maps(guide[name])
                loss = loss + beta * attention_distance(own, theirs)
            loss.backward()
            return loss

        return gradients


def attention(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n positions"]:
    """Compute attention maps: sums of squares over the channels, normalised to unit length."""
    return F.normalize(maps.square().sum(1).flatten(1), dim=1)


def attention_distance(one: Float[Tensor, "n c h w"], other: Float[Tensor, "n d h w"]) -> Tensor:
    """Compute the mean squared difference of two attention maps, a scalar."""
    return F.mse_loss(attention(one), attention(other))


def stages_of(network: nn.Module, clean: DataSource) -> dict[str, Layout]:
    """Return the stages that a network names itself, or those that are found in it.

    Returns:
        The layout of the features of each stage, by its name.
    """
    where = device_of(network)
    images = first_batch(clean, "validation", batch_size=2, device=where).images
    names = taps_of(network, clean)
    return dict(zip(names, layouts_of(network, names, images), strict=True))

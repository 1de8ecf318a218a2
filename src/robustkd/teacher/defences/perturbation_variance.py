r"""An objective of the detoxification: feature variance under universal perturbations.

The variance ratio of :mod:`robustkd.teacher.defences.detoxification` is measured on clean images.
It does not see directions of the features that clean images do not excite, and a backdoor can use
such a direction. This objective excites them by universal perturbations :math:`\delta_k` with
which the teacher predicts a class k. With the weight lambda, and in addition to the cross-entropy
of clean images, masks and patterns minimise

.. math:: L_{ce}(T'(\delta_k x), y) + \frac1L \sum_l
    \frac{\sum_x \lVert F'_l(\delta_k x) - F'_l(x) \rVert^2}
    {\sum_x \lVert F_l(\delta_k x) - F_l(x) \rVert^2}

with sums over the batch. Here :math:`F_l` are the features of the teacher T, and :math:`F'_l` those
of the teacher with masks T'. The setting ``ratio`` of the detoxification is not used. No trigger is
needed: the perturbations are learned from clean images.

The objective is ours. It extends the feature variance of arXiv 2406.03409. Related work: I-BAU
(Zeng et al., ICLR 2022, arXiv 2110.03735) trains all weights against one perturbation without
classes; here the weights are frozen, and masks of the features are learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkd.core.types import Batch, Images, Labels
from robustkd.models.features import taps
from robustkd.teacher.defences.masks import DetoxifiedTeacher

Perturb: TypeAlias = Callable[[Images, Labels], Images]
"""Function that perturbs each image towards a class."""
_LEAST = 1e-6


class PerturbationVariance:
    """Feature variance that universal perturbations add, and the cross-entropy under them.

    It is an :data:`robustkd.teacher.defences.detoxification.DetoxObjective`.

    Args:
        perturb: Universal perturbations of every class.
        classes: Number of classes, at least 2.
        seed: Seed of the classes that are drawn. An object draws further classes in each call, so a
            detoxification that is to be repeated needs a new one.
    """

    def __init__(self, perturb: Perturb, classes: int, seed: int) -> None:
        self._perturb, self._classes = perturb, classes
        self._random = torch.Generator().manual_seed(seed)

    def __call__(
        self, teacher: DetoxifiedTeacher, features: Sequence[Tensor], batch: Batch
    ) -> Tensor:
        """Compute the term, a scalar."""
        shift = torch.randint(1, self._classes, batch.labels.shape, generator=self._random)
        toward = (batch.labels + shift.to(batch.labels.device)) % self._classes
        with torch.no_grad():
            changed = self._perturb(batch.images, toward)
            before, after = (_original(teacher, images) for images in (batch.images, changed))
            added = _distances(after, before)
        with taps.read(teacher, teacher.taps) as cleaned:
            logits = teacher(changed)
            left = _distances([cleaned[name] for name in teacher.taps], features)
        return F.cross_entropy(logits.float(), batch.labels) + (left / added).mean()


def _original(teacher: DetoxifiedTeacher, images: Images) -> list[Tensor]:
    """Return the features of the teacher without masks."""
    with taps.read(teacher.teacher, teacher.locations) as features:
        teacher.teacher(images)
        return [features[name] for name in teacher.locations]


def _distances(some: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Squared distances of the features of each stage, one scalar per stage and above 0."""
    pairs = zip(some, others, strict=True)
    squares = [(one.float() - other.float()).square().sum() for one, other in pairs]
    return torch.stack(squares).clamp_min(_LEAST)

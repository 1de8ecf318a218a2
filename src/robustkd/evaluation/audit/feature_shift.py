r"""Feature shift: how much of a transformation's effect on features is common to all images.

For the learned transformation towards class k at the smallest strength, and its change
:math:`d_i = F(\delta_k(x_i)) - F(x_i)` of the last stage's features, averaged over positions, the
statistic is

.. math:: c_k = \max_f \frac{\|\bar d\|^2}{\frac{1}{n} \sum_i \|d_i\|^2}

the share of the change that is its mean, in [0, 1]; the rest is variance over images. The trigger
of a backdoor moves the features of any image by the same vector.

Null distribution: the :math:`c_k` are normal with one mean
(:func:`robustkd.evaluation.audit.outliers.student_outlier`).

Source: the feature variance of RobustKD (Chen et al. 2024, arXiv 2406.03409), under perturbation
instead of over clean images. The test is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.core.types import Images
from robustkd.evaluation.audit.evidence import Evidence, Subject
from robustkd.evaluation.audit.outliers import student_outlier, untestable
from robustkd.models.features.collect import layouts_of
from robustkd.models.features.stages import stages
from robustkd.models.features.taps import read
from robustkd.student.families import members_of
from robustkd.student.families.search import victims

_LEAST_SPREAD = 0.03


def feature_shift(subject: Subject) -> Evidence:
    """Measure how uniformly the learned transformations of each class move the features."""
    images, labels = subject.held_out()
    try:
        tap = stages(subject.network, images[:2])[-1]
        layout = layouts_of(subject.network, [tap], images[:2])[0]
    except UsageError:
        return Evidence(None, None, "no stage of the network was found")
    random = torch.Generator().manual_seed(subject.seed)
    rows, toward = victims(labels, subject.classes, subject.effort.held_out, random)
    shares = []
    with torch.no_grad(), read(subject.network, [tap]) as features:

        def pooled(seen: Images) -> Tensor:
            parts = []
            for some in subject.split(seen):
                subject.network(some)
                parts.append(layout.maps(features[tap]).flatten(2).mean(2))
            return torch.cat(parts)

        before = pooled(images)[rows]
        for family in members_of(subject.found[-1]):
            change = pooled(family(images[rows], toward)) - before
            shares.append([common(change[toward == k]) for k in range(subject.classes)])
    values = torch.tensor(shares).amax(0).tolist()
    outlier = student_outlier(values, spread=_LEAST_SPREAD)
    if outlier is None:
        return Evidence(None, None, untestable(values), tuple(values))
    said = f"{values[outlier.place]:.0%} of the shift of features is common"
    return Evidence(outlier.p_value, outlier.place, said, tuple(values), {"families": shares})


def common(change: Tensor) -> float:
    """Return the squared norm of the mean change as a share of the mean squared change.

    Args:
        change: Changes of the features of n images, n x d.

    >>> common(torch.tensor([[1.0, 0.0], [1.0, 0.0]])), common(torch.tensor([[1.0], [-1.0]]))
    (1.0, 0.0)
    """
    whole = change.square().sum(1).mean().clamp_min(1e-12)
    return float(change.mean(0).square().sum() / whole)

"""Variance of features over images, and the part of it within classes."""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from robustkd.core.method_settings import Ratio
from robustkd.core.types import Features, Labels

ALIVE: Final = 1e-6
"""Positions with a variance of at most this are treated as constant; ratios leave them out."""


def variance_ratio(
    part: Float[Tensor, "*shape"], whole: Float[Tensor, "*shape"], *, ratio: Ratio = "position"
) -> Float[Tensor, ""]:
    r"""Ratio of two variances: the :math:`L_f` of arXiv 2406.03409 for one stage.

    .. math:: \mathrm{mean}_{c,h,w} \frac{v_{c,h,w}}{w_{c,h,w}} \quad \text{or} \quad
        \frac{\sum_{c,h,w} v_{c,h,w}}{\sum_{c,h,w} w_{c,h,w}}

    Args:
        part: Variances v at every position of a stage's features, at least 0.
        whole: Variances w at the same positions.
        ratio: ``position`` for the mean of the ratios over positions that are not constant, which
            gives channels with low and high variance the same weight; ``stage`` for the ratio of
            the sums.

    Returns:
        A scalar; NaN if all positions are constant.

    >>> quiet_and_loud = torch.tensor([1.0, 9.0])
    >>> half_of_the_quiet = torch.tensor([0.5, 9.0])
    >>> variance_ratio(half_of_the_quiet, quiet_and_loud)
    tensor(0.7500)
    >>> variance_ratio(half_of_the_quiet, quiet_and_loud, ratio="stage")
    tensor(0.9500)
    """
    if ratio == "stage":
        return part.sum() / whole.sum()
    alive = whole > ALIVE
    return (part[alive] / whole[alive]).mean()


def within_class_variance(features: Features, labels: Labels) -> Tensor:
    r"""Variance of features around the mean of their class.

    .. math:: \frac{1}{n - k} \sum_i (F_i - \bar F_{y_i})^2

    where k is the number of classes that occur. A classifier of these labels does not need this
    part of the variance.

    Args:
        features: Features of n images, n x ...; gradients flow through them.
        labels: Labels of the n images.

    Returns:
        Variance at every position, at least 0; all 0 if no class has two images.

    >>> features = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    >>> within_class_variance(features, torch.tensor([0, 0, 1, 1]))
    tensor([2.])
    """
    # A product with one-hot rows, because `index_add` is not deterministic on every device.
    members = torch.nn.functional.one_hot(labels).to(features.dtype)
    counts = members.sum(dim=0)
    flat = features.flatten(1)
    means = members.T @ flat / counts.clamp_min(1)[:, None]
    spread = (flat - members @ means).square().sum(dim=0)
    freedom = max(1, len(labels) - int((counts > 0).sum()))
    return spread.view(features.shape[1:]) / freedom

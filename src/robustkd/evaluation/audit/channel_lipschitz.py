r"""Channel Lipschitzness: channels that can amplify their input far more than their neighbours.

The upper bound :math:`\sigma_c` of a channel's Lipschitz constant is that of
:mod:`robustkd.teacher.defences.clp`. With mean and standard deviation of
:math:`\log \sigma_c` over the layer, the statistic is the largest standardised value over all
layers.

Null distribution: the :math:`\log \sigma_c` of a layer are normal; Bonferroni over all channels.
Channels that are nearly constant are left out, since their logarithm is no measure of anything. The
statistic names no class.

Source: Zheng, Tang, Li, Liu, *Data-free Backdoor Removal based on Channel Lipschitzness*, ECCV
2022, arXiv 2208.03111. Difference: the paper prunes channels beyond 3 standard deviations of
:math:`\sigma_c` and tests nothing.
"""

from __future__ import annotations

import torch
from scipy import stats

from robustkd.evaluation.audit.evidence import Evidence, Subject
from robustkd.models.features.channels import lipschitz
from robustkd.models.features.probing import batchnorm_after

_FEWEST = 8
_LEAST = 1e-3


def channel_lipschitz(subject: Subject) -> Evidence:
    """Find the channel that stands out most in its layer."""
    images, _ = subject.held_out()
    largest, tested, layer = 0.0, 0, -1
    for place, (conv, norm) in enumerate(batchnorm_after(subject.network, images[:2])):
        bounds = lipschitz(conv, norm)
        alive = bounds[bounds > _LEAST * bounds.amax()]
        if len(alive) < _FEWEST:
            continue
        value = largest_deviation(alive.log())
        tested += len(alive)
        if value > largest:
            largest, layer = value, place
    if not tested:
        return Evidence(None, None, "no convolution with enough channels")
    p_value = min(1.0, tested * float(stats.norm.sf(largest)))
    said = f"a channel is {largest:.1f} deviations above its layer"
    return Evidence(p_value, None, said, details={"layer": layer, "channels": tested})


def largest_deviation(values: torch.Tensor) -> float:
    """Return the largest value in standard deviations above the mean.

    >>> round(largest_deviation(torch.tensor([0.0, 0.0, 0.0, 4.0])), 3)
    1.5
    """
    return float((values.amax() - values.mean()) / values.std().clamp_min(1e-12))

"""Scale of the logits of an audited network, beside that of the reference networks.

The search minimises the sum of two cross-entropies, one of the audited network and one of a
reference. Dividing the last layer by 1000 changes no prediction, but the first gradient would then
be too small to find anything. So logits of an unusual scale are brought to that of the references.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch
from torch import nn

from robustkd.core.types import Images, Logits

_USUAL = 2.0
"""Scales that differ by at most this ratio are not changed."""


class Scaled(nn.Module):
    """Network whose logits are multiplied by a factor.

    Args:
        network: The network.
        factor: The factor, above 0.
    """

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, images: Images) -> Logits:
        """Return the scaled logits."""
        logits: Logits = self.network(images) * self.factor
        return logits


def at_usual_scale(
    network: nn.Module, references: Sequence[nn.Module], images: Images
) -> nn.Module:
    """Return a network with logits of the scale of the references.

    The scale is the difference between the largest logit of an image and the median of its logits,
    as a median over images. A few unusual classes or images change it little.

    Args:
        network: Frozen network in eval mode.
        references: Reference networks; without any, there is no scale to compare with.
        images: Clean images.

    Returns:
        The network itself if the scales differ by no more than a factor of two.
    """
    if not references:
        return network
    own = _scale(network, images)
    usual = median(_scale(each, images) for each in references)
    if own <= 0 or usual / _USUAL <= own <= usual * _USUAL:
        return network
    return Scaled(network, usual / own)


@torch.inference_mode()
def _scale(network: nn.Module, images: Images) -> float:
    logits = network(images).double()
    return float((logits.amax(1) - logits.median(1).values).median())

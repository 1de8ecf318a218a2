"""Channels of a network: their BatchNorm layers, factors of these, and Lipschitz bounds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustkd.core.types import Images, Logits


def norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers that have weights, by module path; possibly none."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.affine
    }


def scaled(
    network: nn.Module,
    images: Images,
    weights: Mapping[str, Tensor],
    biases: Mapping[str, Tensor] | None = None,
) -> Logits:
    """Compute the logits with each channel's BatchNorm weight and bias multiplied by a factor.

    Args:
        network: Network with a BatchNorm at each path.
        images: N x C x H x W in [0, 1].
        weights: Factors of the weights by module path, one per channel.
        biases: Factors of the biases; None for ones.
    """
    named = dict(network.named_parameters())
    changed = {f"{path}.weight": named[f"{path}.weight"] * by for path, by in weights.items()}
    changed |= {f"{path}.bias": named[f"{path}.bias"] * by for path, by in (biases or {}).items()}
    logits: Logits = torch.func.functional_call(network, changed, (images,))
    return logits


@torch.no_grad()
def lipschitz(conv: nn.Conv2d, norm: _BatchNorm | None) -> Tensor:
    """Compute an upper bound of the Lipschitz constant of each output channel."""
    filters = conv.weight.flatten(2)
    bound: Tensor = torch.linalg.svdvals(filters)[:, 0]
    if norm is None or norm.running_var is None:
        return bound
    gain: Tensor = (norm.running_var + norm.eps).rsqrt()
    return bound * (gain if norm.weight is None else gain * norm.weight.abs())

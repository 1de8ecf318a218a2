"""Scaling and pruning of BatchNorm channels, and the search for a threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustkd.core.errors import UsageError
from robustkd.core.types import Images, Logits

T = TypeVar("T")


def norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers that have weights, by module path.

    Raises:
        UsageError: If there is none.
    """
    found = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.affine
    }
    if not found:
        raise UsageError(
            f"{type(network).__name__} has no BatchNorm with weights, whose channels this defence "
            "prunes; choose another defence"
        )
    return found


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
def prune_below(network: nn.Module, masks: Mapping[str, Tensor], threshold: float) -> int:
    """Set the BatchNorm weight of every channel whose mask is at most ``threshold`` to zero.

    The bias stays, as in the code of ANP and RNP.

    Returns:
        Number of channels that were pruned.
    """
    pruned = 0
    for path, norm in norms(network).items():
        dead = masks[path] <= threshold
        norm.weight[dead] = 0.0
        pruned += int(dead.sum())
    return pruned


def last_within(
    candidates: Iterable[T], accuracy: Callable[[T], float], floor: float
) -> tuple[T | None, list[tuple[T, float]]]:
    """Find the last candidate before the clean accuracy falls below a floor.

    Args:
        candidates: Candidates from the mildest to the strongest.
        accuracy: Function that returns the clean validation accuracy of a candidate, in [0, 1].
        floor: Smallest acceptable accuracy.

    Returns:
        The candidate, or None if even the first one is below the floor; and all measurements.

    >>> last_within([1, 2, 3], {1: 0.9, 2: 0.8, 3: 0.1}.get, 0.75)
    (2, [(1, 0.9), (2, 0.8), (3, 0.1)])
    """
    held: T | None = None
    curve: list[tuple[T, float]] = []
    for candidate in candidates:
        curve.append((candidate, accuracy(candidate)))
        if curve[-1][1] < floor:
            break
        held = candidate
    return held, curve

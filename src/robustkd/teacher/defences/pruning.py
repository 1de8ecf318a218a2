"""Pruning of channels within a budget of clean accuracy, the last step of ANP, RNP and CLP."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustkd.core.errors import UsageError
from robustkd.models.features.channels import norms
from robustkd.models.features.stored import check_stored
from robustkd.teacher.defences.base import Defended, within
from robustkd.teacher.defences.tuning import Cleaning

T = TypeVar("T")


class Pruning(NamedTuple):
    """What was pruned.

    Attributes:
        strength: The strongest candidate within the budget; None if there is none.
        pruned: Number of channels that were pruned.
        curve: Each candidate that was tried, and its clean validation accuracy.
    """

    strength: float | None
    pruned: int
    curve: list[list[float]]


def prune_within(
    work: Cleaning, strengths: Iterable[float], prune: Callable[[float], int], budget: float
) -> Pruning:
    """Prune the copy as strongly as a budget of clean accuracy allows.

    Args:
        work: The cleaning whose copy is pruned, in place.
        strengths: Candidates from the mildest to the strongest.
        prune: Function that prunes the copy by a candidate and returns the number of channels.
        budget: Largest loss of clean validation accuracy, in [0, 1).
    """
    before = copy.deepcopy(work.network.state_dict())  # whose extra states may be no tensors

    def accuracy(strength: float) -> float:
        work.network.load_state_dict(before)
        prune(strength)
        return work.accuracy()

    strength, curve = last_within(strengths, accuracy, work.accuracy_before - budget)
    work.network.load_state_dict(before)
    pruned = 0 if strength is None else prune(strength)
    return Pruning(strength, pruned, [list(point) for point in curve])


def prune_by_masks(
    work: Cleaning, masks: Mapping[str, Tensor], thresholds: Sequence[float], budget: float
) -> Defended:
    """Prune the channels with a small mask, by the largest threshold within the accuracy budget.

    Args:
        work: The cleaning whose copy is pruned, in place.
        masks: Masks of the BatchNorm channels by module path, in [0, 1].
        thresholds: Thresholds to try, in increasing order.
        budget: Largest loss of clean validation accuracy, in [0, 1).
    """
    found = prune_within(
        work, thresholds, lambda threshold: prune_below(work.network, masks, threshold), budget
    )
    every = torch.cat([mask.flatten() for mask in masks.values()])
    return work.finish(
        threshold=found.strength,
        pruned=found.pruned,
        channels=len(every),
        mean_mask=float(every.mean()),
        curve=found.curve,
    )


def prunable(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers whose channels can be pruned, by module path.

    Raises:
        UsageError: If there is none, or weights are computed from other tensors.
    """
    if found := norms(network):
        check_stored(network, found.values(), who="this defence")
        return found
    raise UsageError(
        f"{type(network).__name__} has no BatchNorm with weights, whose channels this defence "
        "prunes; choose another defence"
    )


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
        if not within(curve[-1][1], floor):
            break
        held = candidate
    return held, curve

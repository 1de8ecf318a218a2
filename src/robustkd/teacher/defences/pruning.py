"""Pruning within a budget of clean accuracy, the last step of ANP, RNP and CLP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robustkd.teacher.defences.base import Defended
from robustkd.teacher.defences.channels import last_within, prune_below
from robustkd.teacher.defences.tuning import Cleaning


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
    before = {name: value.clone() for name, value in work.network.state_dict().items()}

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

"""Pruning by a mask within a budget of clean accuracy, the last step of ANP and RNP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robustkd.teacher.defences.base import Defended
from robustkd.teacher.defences.channels import last_within, prune_below
from robustkd.teacher.defences.tuning import Cleaning


def prune_within(
    work: Cleaning, masks: Mapping[str, Tensor], thresholds: Sequence[float], budget: float
) -> Defended:
    """Prune the channels with a small mask, by the largest threshold within the accuracy budget.

    Args:
        work: The cleaning whose copy is pruned, in place.
        masks: Masks of the BatchNorm channels by module path, in [0, 1].
        thresholds: Thresholds to try, in increasing order.
        budget: Largest loss of clean validation accuracy, in [0, 1).
    """
    before = {name: value.clone() for name, value in work.network.state_dict().items()}

    def accuracy(threshold: float) -> float:
        work.network.load_state_dict(before)
        prune_below(work.network, masks, threshold)
        return work.accuracy()

    threshold, curve = last_within(thresholds, accuracy, work.accuracy_before - budget)
    work.network.load_state_dict(before)
    pruned = 0 if threshold is None else prune_below(work.network, masks, threshold)
    every = torch.cat([mask.flatten() for mask in masks.values()])
    return work.finish(
        threshold=threshold,
        pruned=pruned,
        channels=len(every),
        mean_mask=float(every.mean()),
        curve=[list(point) for point in curve],
    )

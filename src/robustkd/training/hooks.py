"""Functions that a training calls, and the choice of the epoch whose weights are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


def chosen_epoch(figures: Sequence[float], enough: Callable[[float], float] | None = None) -> int:
    """Return the index of the epoch whose weights are kept: the last one that is good enough.

    Args:
        figures: Validation figure of each epoch, to be maximised; at least one.
        enough: Monotonic function from the best figure to the smallest acceptable one; None
            accepts only the best.

    >>> chosen_epoch([0.7, 0.9, 0.9, 0.8]), chosen_epoch([0.7, 0.9, 0.9, 0.8], lambda best: 0.75)
    (2, 3)
    """
    best = max(figures)
    least = best if enough is None else enough(best)
    return max(epoch for epoch, figure in enumerate(figures) if figure >= least)


@dataclass(frozen=True)
class Hooks:
    """Functions that a training calls; each may be None.

    Attributes:
        after_backward: Called between the backward pass and the optimiser's step.
        validate: Called after each epoch; returns a figure to maximise. :func:`chosen_epoch` tells
            from which epoch the weights are kept.
        enough: Called with the best figure; returns the figure that is enough for a later epoch to
            be kept instead.
    """

    after_backward: Callable[[], None] | None = None
    validate: Callable[[], float] | None = None
    enough: Callable[[float], float] | None = None


NO_HOOKS = Hooks()

"""Schedules of the learning rate."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

Schedule: TypeAlias = Literal["cosine", "step", "constant"]


def schedule_factor(schedule: Schedule, done: float, warmup: float = 0.0) -> float:
    """Return the factor of the learning rate after the share ``done``, in [0, 1], of all steps.

    ``cosine`` falls from 1 to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983); ``step`` divides
    by 10 at 1/2 and at 3/4; ``constant`` is always 1. During the first share ``warmup``, in [0, 1),
    the factor rises linearly from 0 to 1, and the schedule applies to the rest of the training
    (Goyal et al. 2017, arXiv 1706.02677).

    >>> [schedule_factor("step", done) for done in (0.0, 0.5, 0.75)]
    [1.0, 0.1, 0.01]
    >>> [schedule_factor("step", done, warmup=0.2) for done in (0.0, 0.1, 0.2, 0.7)]
    [0.0, 0.5, 1.0, 0.1]
    """
    if done < warmup:
        return done / warmup
    done = (done - warmup) / (1 - warmup)
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0 if done < 1 / 2 else 0.1 if done < 3 / 4 else 0.01

"""Tests for one class whose value is larger than that of all other classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import stats

FEWEST = 4
"""Smallest number of classes for which an outlier among them can be tested."""
_LEAST_SPREAD = 1e-9


class Outlier(NamedTuple):
    """The class with the smallest p-value, and the p-value after correction for all classes."""

    place: int
    p_value: float


def student_outlier(values: Sequence[float], *, spread: float | int = 0.0) -> Outlier | None:
    r"""Test whether the largest value is an outlier, by the deleted residual.

    .. math:: t_k = \frac{v_k - \bar v_{-k}}{s_k \sqrt{1 + 1 / (K - 1)}}

    with mean and standard deviation of the other K - 1 values. Under the null hypothesis, values
    are independent and normal with one mean, and :math:`t_k` has Student's distribution with
    K - 2 degrees of freedom. The p-value is one-sided and multiplied by K (Bonferroni). Two
    outliers at once mask each other.

    Args:
        values: One value per class, at least :data:`FEWEST` of them.
        spread: Standard deviation of a value that is known from elsewhere, such as from reference
            networks; :math:`s_k` is at least this.

    Returns:
        The class and its p-value; None for fewer than :data:`FEWEST` classes, or if a value is not
        finite.

    Source: Grubbs, "Procedures for Detecting Outlying Observations in Samples", Technometrics 11,
    1969; the deleted residual is an equivalent form.

    >>> found = student_outlier([0.1, 0.2, 0.1, 0.9, 0.2, 0.15, 0.1, 0.2])
    >>> found.place, found.p_value < 1e-4
    (3, True)
    >>> student_outlier([0.1, 0.2]) is None, student_outlier([0.1] * 9 + [math.nan]) is None
    (True, True)
    """
    count = len(values)
    if count < FEWEST or not all(map(math.isfinite, values)):
        return None
    best = max(range(count), key=values.__getitem__)
    others = [*values[:best], *values[best + 1 :]]
    scale = max(stdev(others), spread, _LEAST_SPREAD) * math.sqrt(1 + 1 / (count - 1))
    tail = float(stats.t.sf((values[best] - fmean(others)) / scale, count - 2))
    return Outlier(best, min(1.0, count * tail))


def untestable(values: Sequence[float]) -> str:
    """Say why :func:`student_outlier` has no result for these values."""
    if len(values) < FEWEST:
        return "too few classes to compare"
    return "a value is not finite"

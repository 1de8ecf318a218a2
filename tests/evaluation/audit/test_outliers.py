"""Tests of outliers against closed forms, and their error rates on draws from the null."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import numpy as np
import pytest
from scipy import stats

from robustkd.evaluation.audit.outliers import Outlier, student_outlier

RANDOM = np.random.default_rng(0)


def test_the_deleted_residual_equals_a_two_sample_test():
    values = RANDOM.normal(size=9).tolist()
    best = int(np.argmax(values))
    others = [value for place, value in enumerate(values) if place != best]
    statistic = (values[best] - fmean(others)) / (stdev(others) * math.sqrt(1 + 1 / 8))
    expected = 9 * stats.t.sf(statistic, 7)
    assert student_outlier(values) == Outlier(best, pytest.approx(min(1.0, expected)))


def test_location_and_scale_do_not_matter():
    values = [0.1, 0.4, 0.2, 0.9, 0.3]
    moved = [7 + 3 * value for value in values]
    assert student_outlier(moved).p_value == pytest.approx(student_outlier(values).p_value)


def test_a_known_spread_is_a_floor():
    values = [0.0, 0.001, 0.0, 0.01, 0.0, 0.001]
    assert student_outlier(values).p_value < 0.01
    assert student_outlier(values, spread=0.1).p_value == 1.0
    assert student_outlier(values, spread=1e-9) == student_outlier(values)


def test_few_classes_have_no_outlier_and_equal_ones_none():
    assert student_outlier([1.0, 2.0, 3.0]) is None
    assert student_outlier([1.0] * 10).p_value == 1.0


def test_the_error_rate_under_the_null_is_below_the_level():
    draws = RANDOM.normal(size=(400, 10))
    errors = sum(student_outlier(row).p_value <= 0.05 for row in draws.tolist())
    # The largest of ten exceeds the corrected level with probability of at most 5 %.
    assert errors <= stats.binom.ppf(0.999, 400, 0.05)

"""Confidence intervals compared with scipy, and defence effectiveness by hand."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from robustkd.core.errors import UsageError
from robustkd.core.statistics import defence_effectiveness, difference_interval, wilson

SHARE = st.floats(0, 1)


@pytest.mark.parametrize("hits", [0, 1, 37, 99, 100])
def test_wilson_agrees_with_scipy(hits):
    expected = binomtest(hits, 100).proportion_ci(method="wilson")
    assert wilson(hits / 100, 100) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_wilson_interval_contains_the_share(share):
    for n in range(1, 3000):
        low, high = wilson(share, n)
        assert 0 <= low <= share <= high <= 1


def difference(hits, n, others, m):
    first, second = hits / n, others / m
    return difference_interval(first, wilson(first, n), second, wilson(second, m))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((6, 7, 2, 7), (0.0582, 0.8062)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
        ((10, 10, 0, 10), (0.6075, 1.0)),
    ],
)
def test_the_interval_of_a_difference_is_that_of_the_publication(counts, expected):
    assert difference(*counts) == pytest.approx(expected, abs=5e-5)


@given(st.integers(0, 40), st.integers(0, 60))
def test_the_interval_of_a_difference_contains_it_and_is_antisymmetric(hits, others):
    low, high = difference(hits, 40, others, 60)
    assert -1 <= low <= hits / 40 - others / 60 <= high <= 1
    assert difference(others, 60, hits, 40) == pytest.approx((-high, -low))


@pytest.mark.parametrize(
    ("acc", "asr", "expected"),
    [
        ((0.9, 0.9), (1.0, 0.0), 1.0),  # attack gone at no cost
        ((0.9, 0.9), (0.7, 0.7), 0.5),  # nothing done
        ((1.0, 0.0), (1.0, 1.0), 0.0),  # model destroyed, attack kept
        ((0.9, 0.8), (1.0, 0.2), 0.85),
        ((0.8, 0.9), (1.0, 0.5), 0.75),  # gained accuracy earns nothing
        ((0.9, 0.7), (0.1, 0.9), 0.4),  # a stronger attack costs nothing further
    ],
)
def test_defence_effectiveness_by_hand(acc, asr, expected):
    value = defence_effectiveness(
        acc_before=acc[0], acc_after=acc[1], asr_before=asr[0], asr_after=asr[1]
    )
    assert value == pytest.approx(expected)


@settings(deadline=None)
@given(SHARE, SHARE, SHARE, SHARE)
def test_defence_effectiveness_is_a_fraction(a, b, c, d):
    value = defence_effectiveness(acc_before=a, acc_after=b, asr_before=c, asr_after=d)
    assert 0 <= value <= 1


@pytest.mark.parametrize("name", ["acc_before", "acc_after", "asr_before", "asr_after"])
@pytest.mark.parametrize("bad", [86.6, -0.1, math.nan])
def test_defence_effectiveness_refuses_percentages(name, bad):
    shares = dict.fromkeys(["acc_before", "acc_after", "asr_before", "asr_after"], 0.5)
    text = re.escape(f"{name} is {bad}; expected a fraction in [0, 1], not a percentage")
    with pytest.raises(UsageError, match=text):
        defence_effectiveness(**shares | {name: bad})

"""The gate between a student and its files."""

from __future__ import annotations

import math

import pytest
import torch

from robustkd.core.errors import ThresholdError, UsageError
from robustkd.export import compare
from robustkd.export.parity import check, check_drop, check_most
from robustkd.training.metrics import Proportion


def logits(n: int) -> torch.Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(n))


def swapped(original: torch.Tensor, images: int) -> torch.Tensor:
    """The same logits, of which so many images get another class."""
    changed = original.clone()
    changed[:images] = -changed[:images]
    return changed


def test_identical_models_agree():
    found = compare(logits(20), logits(20))
    assert (found.same.hits, found.same.n, found.largest, found.holds) == (20, 20, 0.0, True)


def test_a_constant_shift_keeps_every_class():
    found = compare(logits(20), logits(20) + 0.5)
    assert found.same.hits == 20
    assert found.largest == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(("images", "other", "holds"), [(1000, 1, True), (1000, 2, False)])
def test_one_image_in_a_thousand_may_differ(images, other, holds):
    assert compare(logits(images), swapped(logits(images), other)).holds is holds


def test_below_a_thousand_images_all_must_agree():
    assert not compare(logits(999), swapped(logits(999), 1)).holds


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(value):
    broken = logits(10)
    broken[3, 2] = value
    found = compare(logits(10), broken)
    assert not found.holds
    assert found.record()["largest_difference"] is None
    # Also where the student itself has them, and both agree.
    assert not compare(broken, broken).holds
    with pytest.raises(
        ThresholdError, match=r"^file differs from the student: .* logits inf\); nothing"
    ):
        check(found, "file")


def test_other_shapes_are_refused():
    with pytest.raises(UsageError, match=r"^logits of shapes \(3, 5\) and \(2, 5\); expected"):
        compare(logits(3), logits(2))
    with pytest.raises(UsageError, match="at least one image"):
        compare(torch.zeros(0, 5), torch.zeros(0, 5))


def test_a_loss_of_accuracy_above_the_threshold_is_refused():
    for hits in (95, 90, 80):
        check_drop(Proportion(90, 100), Proportion(hits, 100), 0.1, "file")
    with pytest.raises(ThresholdError) as caught:
        check_drop(Proportion(90, 100), Proportion(79, 100), 0.1, "file")
    assert str(caught.value) == (
        "file is 11.00 points less accurate than the student: 79.0 % [70.0, 85.8] against 90.0 % "
        "[82.6, 94.5] of 100 test images, expected at most 10 points; nothing was written"
    )


def test_a_threshold_is_a_fraction_and_needs_an_int8_file():
    check_most(None, int8=False)
    check_most(0.0, int8=True)
    for most in (-0.1, 1.5, math.nan):
        with pytest.raises(UsageError, match=rf"^max_int8_drop is {most}; expected a fraction fr"):
            check_most(most, int8=True)
    with pytest.raises(UsageError, match=r"^max_int8_drop is 0\.1 and int8 is False; expected one"):
        check_most(0.1, int8=False)

"""Variances by hand, by a naive loop, and by the law of total variance."""

from __future__ import annotations

import pytest
import torch

from robustkd.models.features.variance import variance_ratio, within_class_variance


def features(n: int = 30, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *(shape or (3, 2, 4)), generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 2, 5]).repeat(10)


def test_the_variance_equals_that_of_a_loop_over_classes():
    seen = features()
    summed = sum((seen[k == LABELS] - seen[k == LABELS].mean(0)).square().sum(0) for k in (0, 2, 5))
    torch.testing.assert_close(within_class_variance(seen, LABELS), summed / (30 - 3))


def test_within_and_between_make_the_whole():
    seen = features()
    means = torch.stack([seen[k == LABELS].mean(0) for k in (0, 2, 5)])
    between = 10 * (means - seen.mean(0)).square().sum(0)
    whole = 29 * seen.var(0)
    torch.testing.assert_close(27 * within_class_variance(seen, LABELS) + between, whole)


def test_one_class_has_its_whole_variance_within():
    seen = features()
    labels = torch.full((30,), 4)
    torch.testing.assert_close(within_class_variance(seen, labels), seen.var(0))


def test_nothing_varies_within_classes_of_one_image_or_of_equal_images():
    seen = features(3)
    assert not within_class_variance(seen, torch.tensor([2, 0, 1])).any()
    same = seen.repeat_interleave(4, dim=0)
    labels = torch.arange(3).repeat_interleave(4)
    torch.testing.assert_close(within_class_variance(same, labels), torch.zeros(3, 2, 4))


def test_a_ratio_ignores_scale_and_is_one_for_equal_features():
    part, whole = features(seed=1).var(0), features(seed=2).var(0)
    for ratio in ("position", "stage"):
        one = variance_ratio(part, whole, ratio=ratio)
        torch.testing.assert_close(variance_ratio(9 * part, 9 * whole, ratio=ratio), one)
        assert variance_ratio(whole, whole, ratio=ratio).item() == pytest.approx(1)
    # Position by position, each may have a scale of its own.
    scales = torch.rand(3, 2, 4) + 0.1
    torch.testing.assert_close(
        variance_ratio(scales * part, scales * whole), variance_ratio(part, whole)
    )


def test_positions_that_do_not_vary_are_left_out():
    part, whole = torch.tensor([1.0, 7.0]), torch.tensor([2.0, 1e-7])
    assert variance_ratio(part, whole).item() == 0.5
    assert variance_ratio(part, torch.zeros(2)).isnan()


def test_the_gradient_pulls_features_to_the_mean_of_their_class():
    seen = features().requires_grad_()
    within_class_variance(seen, LABELS).sum().backward()
    means = torch.stack([seen.detach()[label == LABELS].mean(0) for label in LABELS])
    torch.testing.assert_close(seen.grad, 2 * (seen.detach() - means) / 27)

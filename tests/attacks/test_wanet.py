"""The warp's geometry on images solvable by hand, and WaNet's two modes."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkd import data, models
from robustkd.attacks import Warp, find, load_trigger, save_trigger
from robustkd.attacks.wanet import TwoModes
from robustkd.core.errors import UsageError
from robustkd.data.transformations import displace
from tests.attacks.examples import SHAPE, pixels

DATA = data.load("digits", train=100, validation=20, test=100)
SHORT = {"target": 2, "epochs": 1, "lr": 0.05, "batch_size": 50}


def build() -> models.Classifier:
    return models.build(models.Spec("wrn-10-1", 10, DATA.image_shape), seed=0)


# The warp.


@given(st.integers(2, 7), st.floats(0, 9), st.integers(0, 2**63 - 1))
@settings(max_examples=10, deadline=None)
def test_a_warp_keeps_the_range_whatever_its_settings(grid, strength, seed):
    images = torch.cat([pixels(3, *SHAPE), torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE)])
    warped = Warp(grid, strength, seed)(images)
    assert warped.shape == images.shape
    assert warped.min() >= 0
    assert warped.max() <= 1
    # There is nothing to see in an even picture, as nothing is read from beyond the border.
    torch.testing.assert_close(warped[3:], images[3:])


def test_a_strength_of_zero_changes_nothing():
    images = pixels(4, *SHAPE)
    torch.testing.assert_close(Warp(strength=0.0)(images), images, atol=1e-5, rtol=0)


def test_a_shift_by_whole_pixels_reads_the_neighbour_and_stops_at_the_border():
    image = torch.tensor([[0.0, 0.2, 0.4], [0.6, 0.8, 1.0]]).view(1, 1, 2, 3)
    right, down = torch.zeros(2, 1, 2, 3, 2)
    right[..., 0], down[..., 1] = 1, 1
    seen = displace(image, right)[0, 0].flatten().tolist()
    assert seen == pytest.approx([0.2, 0.4, 0.4, 0.8, 1.0, 1.0], abs=1e-6)
    seen = displace(image, down)[0, 0].flatten().tolist()
    assert seen == pytest.approx([0.6, 0.8, 1.0, 0.6, 0.8, 1.0], abs=1e-6)
    seen = displace(image, -right / 2)[0, 0].flatten().tolist()
    assert seen == pytest.approx([0.0, 0.1, 0.3, 0.6, 0.7, 0.9], abs=1e-6)


@given(st.integers(2, 5), st.floats(0.1, 4), st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_the_strength_is_the_mean_shift_of_the_control_points(grid, strength, seed):
    # At the control grid's own size nothing is interpolated.
    field = Warp(grid, strength, seed).field(grid, grid)
    assert field.shape == (grid, grid, 2)
    assert float(field.abs().mean()) == pytest.approx(strength, rel=1e-4)
    double = Warp(grid, 2 * strength, seed).field(8, 11)
    torch.testing.assert_close(double, 2 * Warp(grid, strength, seed).field(8, 11))


def test_another_seed_is_another_warp():
    images = pixels(2, *SHAPE)
    assert not torch.equal(Warp(seed=0)(images), Warp(seed=1)(images))


def test_its_settings_come_back_from_the_file(tmp_path):
    save_trigger(Warp(grid=3, strength=1.5, seed=4), 2, tmp_path / "t")
    assert load_trigger(tmp_path / "t") == (Warp(grid=3, strength=1.5, seed=4), 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": 1}, "grid is 1; expected at least 2"),
        ({"grid": 1025}, "grid is 1025; expected at most 1024 points"),
        ({"strength": -0.1}, "strength is -0.1; expected at least 0"),
        ({"strength": float("nan")}, "strength is nan; expected at least 0"),
        ({"strength": float("inf")}, "strength is inf; expected a finite number"),
        ({"strength": 1e308}, "strength is 1e+308; expected at most 1e+06 pixels"),
        ({"seed": -1}, "seed is -1; expected at least 0 and below 2^63"),
    ],
)
def test_error_messages(settings, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        Warp(**settings)


def test_a_grid_finer_than_the_image_is_refused(tmp_path):
    save_trigger(Warp(grid=1024), 0, tmp_path / "t")
    trigger, _ = load_trigger(tmp_path / "t")
    message = "grid is 1024; expected at most the edges of the images, 12 x 10 pixels"
    with pytest.raises(UsageError, match=f"^{message}$"):
        trigger(pixels(1, *SHAPE))
    assert Warp(grid=10)(pixels(1, *SHAPE)).shape == (1, *SHAPE)


# The attack.


def two_modes(**changes) -> TwoModes:
    usual = {"target": 2, "classes": 10, "rate": 0.1, "cross_ratio": 2.0, "seed": 0}
    return TwoModes(build(), Warp(), **(usual | changes))


def test_a_batch_has_attacked_noisy_and_clean_images_in_the_given_shares():
    images, labels = pixels(20, *SHAPE), torch.full((20,), 5)
    before = images.clone(), labels.clone()
    mixed, wanted = two_modes().mix(images, labels)
    assert wanted.tolist() == [2] * 2 + [5] * 18
    assert torch.equal(mixed[:2], Warp()(images[:2]))
    for i in range(2, 6):
        assert not torch.equal(mixed[i], images[i])
        assert not torch.equal(mixed[i], Warp()(images[i : i + 1])[0])
    assert torch.equal(mixed[6:], images[6:])
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


def test_attacked_images_get_the_next_class_if_it_is_the_target():
    labels = torch.tensor([9, 4] * 10)
    _, wanted = two_modes(target="next").mix(pixels(20, *SHAPE), labels)
    assert wanted.tolist() == [0, 5] + [9, 4] * 9


def test_noise_is_new_in_every_batch_and_within_half_a_pixel():
    learner, ramp = two_modes(), torch.arange(10.0).div(10).expand(20, 1, 12, 10)
    labels = torch.zeros(20, dtype=torch.int64)
    first, second = (learner.mix(ramp, labels)[0][2:6] for _ in range(2))
    assert not torch.equal(first, second)
    # On a ramp of 0.1 a pixel, half a pixel is 0.05.
    assert (first - Warp()(ramp[2:6])).abs().max() <= 0.05 + 1e-5


def test_without_noise_there_are_two_kinds_of_images():
    images = pixels(20, *SHAPE)
    mixed, _ = two_modes(cross_ratio=0.0).mix(images, torch.zeros(20, dtype=torch.int64))
    assert torch.equal(mixed[2:], images[2:])


@pytest.mark.parametrize("n", [1, 2])
def test_the_last_batch_may_be_tiny(n):
    learner = two_modes().eval()
    scalars = learner(pixels(n, *DATA.image_shape), torch.zeros(n, dtype=torch.int64))
    assert scalars["loss"].isfinite()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.0}, "rate is 0.0; expected above 0 and at most 1"),
        (
            {"rate": 1.0},
            "rate is 1.0; expected above 0 and at most 0.333333, or a smaller cross_ratio: there "
            "are 2 further images for each warped one",
        ),
        (
            {"rate": 0.5, "cross_ratio": 3.0},
            "cross_ratio is 3.0; expected 0 to 1, since rate is 0.5",
        ),
        ({"cross_ratio": -1.0}, "cross_ratio is -1.0; expected at least 0"),
    ],
)
def test_error_messages_of_the_attack(settings, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        find("wanet")(build, DATA, **SHORT, **({"rate": 0.1} | settings))

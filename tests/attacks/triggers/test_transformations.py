"""Transformations on images that one can solve by hand, and their files."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn.functional import conv2d, interpolate

from robustkd.attacks import load_trigger, save_trigger
from robustkd.attacks.triggers import transformations as kinds
from robustkd.attacks.triggers.files import describe
from robustkd.core.errors import InputError, UsageError
from robustkd.data import transformations
from robustkd.models import write_safetensors
from tests.attacks.examples import PARAMETERS, SHAPE, example, pixels

IMAGES = pixels(4, *SHAPE)


@pytest.mark.parametrize("kind", list(PARAMETERS))
def test_parameters_of_zero_change_nothing(kind):
    cls = type(example(kind))
    unchanged = cls(torch.zeros(PARAMETERS[kind]))(IMAGES)
    assert torch.allclose(unchanged, IMAGES, atol=1e-5)


def test_a_constant_flow_moves_pixels():
    flow = torch.zeros(2, 4, 4)
    flow[0] = 2.0
    moved = kinds.Flow(flow)(IMAGES)
    assert torch.allclose(moved[..., :-2], IMAGES[..., 2:], atol=1e-5)
    assert torch.allclose(moved[..., -2:], IMAGES[..., -1:].expand(-1, -1, -1, 2), atol=1e-5)


def test_an_affine_map_of_minus_two_mirrors():
    matrix = torch.zeros(1, 2, 3)
    matrix[0, 0, 0] = -2.0
    assert torch.allclose(kinds.Affine(matrix)(IMAGES), IMAGES.flip(3), atol=1e-5)


def test_a_tone_curve_is_linear_between_its_knots():
    knots = torch.tensor([[[0.2, 0.0, -0.4]]])
    image = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).view(1, 1, 1, 5)
    changed = kinds.ToneCurve(knots)(image).flatten()
    assert torch.allclose(changed, torch.tensor([0.2, 0.35, 0.5, 0.55, 0.6]))


def test_a_constant_light_field_is_a_gain_and_an_offset():
    control = torch.stack([torch.full((4, 4), -0.5), torch.full((4, 4), 0.1)])
    assert torch.allclose(kinds.LightField(control)(IMAGES), IMAGES * 0.5 + 0.1, atol=1e-5)


def test_a_colour_matrix_mixes_channels():
    matrix = torch.zeros(1, 3, 4)
    matrix[0, 0, 0], matrix[0, 0, 1], matrix[0, 2, 3] = -1.0, 1.0, -1.0
    mixed = kinds.ColourMatrix(matrix)(IMAGES)
    assert torch.allclose(mixed[:, 0], IMAGES[:, 1])
    assert torch.equal(mixed[:, 1], IMAGES[:, 1])
    assert not mixed[:, 2].any()


def test_a_filter_is_a_convolution():
    kernel = torch.zeros(1, 3, 3)
    kernel[0, 1, 1], kernel[0, 1, 2] = -1.0, 1.0
    assert torch.allclose(kinds.Filter(kernel)(IMAGES)[..., :-1], IMAGES[..., 1:], atol=1e-6)


def test_smooth_is_the_bicubic_interpolation_also_under_autocast():
    control = pixels(2, 3, 4, 4).requires_grad_()
    weight = pixels(2, 3, 9, 13)
    expected = interpolate(control, (9, 13), mode="bicubic", align_corners=True)
    (slope,) = torch.autograd.grad((expected * weight).sum(), control)
    with torch.autocast("cpu", torch.bfloat16):
        found = transformations.smooth(control, (9, 13))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), control)[0], slope)


def test_a_smooth_field_exceeds_its_control_points_by_the_stated_factor():
    for size in (8, 16, 32, 64):
        single = torch.eye(16).view(16, 1, 4, 4)
        most = transformations.smooth(single, (size, size)).abs().sum(0).amax()
        assert 1.5 < float(most) <= 1.89


@pytest.mark.parametrize("count", [0, 3])
def test_every_image_is_convolved_with_kernels_of_its_own(count):
    images, kernels = pixels(count, 2, 7, 6), pixels(count, 4, 2, 3, 3)
    alone = [conv2d(image, own) for image, own in zip(images, kernels, strict=True)]
    expected = torch.stack(alone) if alone else torch.zeros(0, 4, 5, 4)
    torch.testing.assert_close(transformations.convolved(images, kernels), expected)


def test_every_image_can_have_parameters_of_its_own():
    both = torch.stack([torch.zeros(2, 4, 4), torch.ones(2, 4, 4)])
    found = transformations.flow(IMAGES[:2], both)
    assert torch.allclose(found[0], IMAGES[0], atol=1e-5)
    assert torch.allclose(found[1], kinds.Flow(both[1])(IMAGES[1:2])[0], atol=1e-6)


@pytest.mark.parametrize("kind", list(PARAMETERS))
def test_gradients_reach_the_parameters(kind):
    parameters = (0.1 * pixels(*PARAMETERS[kind])).requires_grad_()
    type(example(kind))(parameters)(0.5 * IMAGES + 0.25).square().sum().backward()
    assert parameters.grad.abs().sum() > 0


def test_a_composition_applies_both_in_order_and_comes_back(tmp_path):
    both = kinds.Composition(example("flow"), example("tone-curve"))
    assert torch.equal(both(IMAGES), both.second(both.first(IMAGES)))
    save_trigger(both, 3, tmp_path / "t")
    again, target = load_trigger(tmp_path / "t")
    assert target == 3
    assert torch.equal(again(IMAGES), both(IMAGES))
    assert describe(again) == describe(both)


@pytest.mark.parametrize(
    ("description", "tensors", "reason"),
    [
        ({}, {}, "a part is not a trigger"),
        (
            {"first": {"trigger": "flow"}, "second": {"trigger": "composition"}},
            {},
            "control is missing",
        ),
        ({"first": {"trigger": "sig", "values": []}}, {}, "values are of type list"),
        ({"first": {"trigger": ["flow"]}}, {}, "a part is not a trigger"),
        ({"first": {"trigger": {}}}, {}, "a part is not a trigger"),
        ({"first": {"trigger": "composition"}}, {}, "a part is not a trigger"),
        ({"first": ["flow"]}, {}, "a part is not a trigger"),
        ({}, {"third.x": torch.zeros(1, 1, 1)}, "unknown field 'third.x'"),
    ],
)
def test_a_damaged_composition_is_refused_in_one_line(description, tensors, reason, tmp_path):
    write_safetensors(
        tmp_path / "t", tensors, {"trigger": "composition", "target": 0, **description}
    )
    with pytest.raises(InputError, match=re.escape(f"has a damaged trigger: {reason}")):
        load_trigger(tmp_path / "t")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: kinds.Flow(torch.zeros(1, 4, 4)),
            "control has shape (1, 4, 4); expected 2 x k x k",
        ),
        (
            lambda: kinds.Affine(torch.zeros(1, 3, 3)),
            "matrix has shape (1, 3, 3); expected 1 x 2 x 3",
        ),
        (
            lambda: kinds.ToneCurve(torch.zeros(1, 1, 1)),
            "knots has shape (1, 1, 1); expected 1 x c x k",
        ),
        (lambda: kinds.LightField(torch.zeros(3, 4, 4)), "control has shape (3, 4, 4); expected"),
        (lambda: kinds.ColourMatrix(torch.zeros(1, 3, 3)), "matrix has shape (1, 3, 3); expected"),
        (lambda: kinds.Filter(torch.zeros(1, 4, 4)), "kernel has shape (1, 4, 4); expected"),
        (lambda: kinds.ToneCurve(torch.zeros(1, 2, 4))(IMAGES), "has 2 curves; expected 1 or the"),
        (lambda: kinds.ColourMatrix(torch.zeros(1, 1, 2))(IMAGES), "has 1 channels; expected"),
        (lambda: kinds.LowFrequency(torch.zeros(1, 4, 4))(IMAGES), "has 1 channels; expected"),
        (lambda: kinds.Filter(torch.zeros(1, 31, 31))(IMAGES), "kernel is 31 pixels wide"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_in_one_line(make, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        make()

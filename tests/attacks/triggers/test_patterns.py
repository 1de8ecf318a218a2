"""The contract of every trigger, and the exact pixels of each on small images."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkd.attacks import SIG, TRIGGERS, BadNets, Blend, MaskedPattern, Trigger
from robustkd.core.errors import UsageError
from tests.attacks.examples import SHAPE, example, pixels

KINDS = list(TRIGGERS)
FRACTIONS = st.floats(0, 1, exclude_min=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trigger_keeps_range_shape_and_type(kind):
    images = torch.cat([pixels(5, *SHAPE), torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE)])
    marked = example(kind)(images)
    assert isinstance(example(kind), Trigger)
    assert marked.shape == images.shape
    assert marked.dtype == images.dtype
    assert marked.min() >= 0
    assert marked.max() <= 1
    assert not torch.equal(marked, images)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trigger_leaves_its_input_unchanged(kind):
    images = pixels(5, *SHAPE)
    before = images.clone()
    example(kind)(images).zero_()
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trigger_is_a_function_of_each_image_alone(kind):
    images = pixels(5, *SHAPE)
    trigger = example(kind)
    torch.manual_seed(1)
    marked = trigger(images)
    assert torch.equal(trigger(images), marked)
    assert torch.equal(example(kind)(images), marked)
    for i in range(len(images)):
        assert torch.equal(trigger(images[i : i + 1]), marked[i : i + 1])
    assert trigger(images[:0]).shape == (0, *SHAPE)


@pytest.mark.parametrize("kind", KINDS)
def test_no_trigger_uses_the_global_random_generator(kind):
    before = torch.get_rng_state()
    example(kind)(pixels(2, *SHAPE))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trigger_is_frozen_and_names_its_numbers(kind):
    trigger = example(kind)
    name = fields(trigger)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(trigger, name, 1)
    assert repr(trigger).startswith(f"{type(trigger).__name__}({name}=")


VISIBLE = st.floats(0.1, 1000).filter(lambda frequency: not (frequency / 3).is_integer())
"""Frequencies of stripes that do not vanish on six columns."""


@given(st.integers(0, 9), FRACTIONS, VISIBLE, st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_parametric_triggers_keep_the_range_at_any_setting(seed, share, frequency, size):
    images = pixels(3, 1, 4, 6, seed=seed)
    for trigger in (
        BadNets(size),
        Blend(share, seed),
        SIG(share, frequency),
        MaskedPattern(share * pixels(1, 4, 6), pixels(1, 4, 6, seed=seed + 1)),
    ):
        marked = trigger(images)
        assert marked.min() >= 0
        assert marked.max() <= 1


# Each by hand.


def test_badnets_is_a_checkerboard_one_pixel_from_the_corner():
    marked = BadNets(size=3)(torch.full((1, 2, 5, 6), 0.5))
    h = 0.5
    assert marked[0, 0].tolist() == marked[0, 1].tolist()
    assert marked[0, 0].tolist() == [
        [h, h, h, h, h, h],
        [h, h, 1, 0, 1, h],
        [h, h, 0, 1, 0, h],
        [h, h, 1, 0, 1, h],
        [h, h, h, h, h, h],
    ]


@given(FRACTIONS, st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_blend_mixes_one_noise_image_into_all(alpha, seed):
    images = pixels(3, *SHAPE)
    noise = Blend(alpha=1.0, seed=seed)(images)
    assert torch.equal(noise[0], noise[1])
    assert noise.std() > 0.2
    expected = (1 - alpha) * images + alpha * noise
    torch.testing.assert_close(Blend(alpha, seed)(images), expected)


def test_blend_depends_only_on_its_seed():
    images = pixels(2, *SHAPE)
    assert not torch.equal(Blend(seed=0)(images), Blend(seed=1)(images))


def test_sig_adds_a_stripe_of_the_sine_along_the_columns():
    # Eight columns and one period: the sine is 0, r, 1, r, 0, -r, -1, -r.
    marked = SIG(delta=0.25, frequency=1.0)(torch.full((1, 1, 2, 8), 0.5))
    r = 0.5**0.5 / 4
    row = [0.5, 0.5 + r, 0.75, 0.5 + r, 0.5, 0.5 - r, 0.25, 0.5 - r]
    assert marked[0, 0, 0].tolist() == pytest.approx(row, abs=1e-6)
    assert torch.equal(marked[0, 0, 1], marked[0, 0, 0])


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 12])
def test_a_stripe_that_vanishes_is_refused(width):
    with pytest.raises(
        UsageError, match=rf"^frequency is 6, whose stripe vanishes on images of {width} "
    ):
        SIG()(torch.full((1, 1, 2, width), 0.5))
    changed = SIG(frequency=6.3)(torch.full((1, 1, 2, 12), 0.5)) - 0.5
    assert float(changed.abs().amax()) > 0.05


def test_sig_is_clipped_to_black_and_white():
    marked = SIG(delta=1.0, frequency=1.0)(
        torch.tensor([0.2, 0.8]).view(2, 1, 1, 1).expand(2, 1, 1, 4)
    )
    assert marked[0].flatten().tolist() == pytest.approx([0.2, 1.0, 0.2, 0.0], abs=1e-6)
    assert marked[1].flatten().tolist() == pytest.approx([0.8, 1.0, 0.8, 0.0], abs=1e-6)


def test_masked_pattern_mixes_by_its_mask():
    mask = torch.tensor([[[0.0, 0.5, 1.0, 0.25]]])
    pattern = torch.tensor([[[1.0, 1.0, 0.75, 0.0]]])
    marked = MaskedPattern(mask, pattern)(torch.full((1, 1, 1, 4), 0.5))
    assert marked.flatten().tolist() == [0.5, 0.75, 0.75, 0.375]


def test_masked_pattern_without_a_mask_is_nothing_and_with_a_full_one_is_the_pattern():
    images, pattern = pixels(4, *SHAPE), pixels(*SHAPE, seed=1)
    assert torch.equal(MaskedPattern(torch.zeros(SHAPE), pattern)(images), images)
    full = MaskedPattern(torch.ones(SHAPE), pattern)(images)
    torch.testing.assert_close(full, pattern.expand(4, *SHAPE))


# Refusals.

PLANE = torch.zeros(1, 2, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BadNets(0), "size is 0; expected at least 1"),
        (lambda: Blend(0.0), "alpha is 0.0; expected above 0 and at most 1"),
        (lambda: Blend(1.5), "alpha is 1.5; expected above 0 and at most 1"),
        (lambda: Blend(float("nan")), "alpha is nan; expected above 0 and at most 1"),
        (lambda: Blend(seed=-1), "seed is -1; expected at least 0 and below 2^63"),
        (lambda: Blend(seed=2**63), f"seed is {2**63}; expected at least 0 and below 2^63"),
        (lambda: SIG(-0.1), "delta is -0.1; expected above 0 and at most 1"),
        (
            lambda: SIG(frequency=1e308),
            "frequency is 1e+308; expected at most 1000 periods",
        ),
        (
            lambda: MaskedPattern(PLANE, torch.zeros(1, 2, 3)),
            "mask has shape (1, 2, 2) and pattern has shape (1, 2, 3); expected equal shapes",
        ),
        (
            lambda: MaskedPattern(PLANE + 1.1, PLANE),
            "the trigger's mask has values from 1.1 to 1.1; expected values in [0, 1]",
        ),
        (
            lambda: MaskedPattern(PLANE, PLANE - 0.1),
            "the trigger's pattern has values from -0.1 to -0.1; expected values in [0, 1]",
        ),
        (
            lambda: MaskedPattern(PLANE / 0, PLANE),
            "the trigger's mask has values from nan to nan; expected values in [0, 1]",
        ),
        (
            lambda: BadNets(12)(torch.zeros(1, 1, 16, 12)),
            "size is 12; expected less than the edges of the images, 16 x 12 pixels",
        ),
        (
            lambda: MaskedPattern(PLANE, PLANE)(torch.zeros(3, 1, 4, 4)),
            "the trigger has shape (1, 2, 2); expected the shape of the images, (1, 4, 4)",
        ),
    ],
)
def test_error_messages(make, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        make()


def test_the_largest_checkerboard_fits():
    assert BadNets(11)(torch.zeros(1, 1, 12, 12))[0, 0, 0, 0] == 1

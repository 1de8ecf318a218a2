"""Universal perturbations: where they stay, whither they go, and that they get there."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustkd.errors import UsageError
from robustkd.harden import UniversalPerturbations, led_astray

SHAPE = (1, 2, 3)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def step(
    perturbations: UniversalPerturbations, weight: Tensor, pixels: Tensor, labels: Tensor
) -> None:
    """One backward pass of a linear classifier (classes x pixels), then one step."""
    seen, worn, toward = perturbations.perturb(pixels, labels)
    logits = seen[:worn].flatten(1) @ weight.T
    led_astray(logits, labels[:worn], toward).sum().backward()
    perturbations.advance()


@given(
    st.integers(1, 20),
    st.integers(2, 6),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_pixels_stay_pixels_the_share_is_kept_and_no_image_wears_its_own_class(
    n, classes, epsilon, share, seed
):
    perturbations = UniversalPerturbations(classes, SHAPE, epsilon=epsilon, share=share, seed=seed)
    clean, labels = images(n), torch.arange(n) % classes
    seen, worn, toward = perturbations.perturb(clean, labels)
    assert worn == len(toward) == max(1, round(share * n))
    assert seen.shape == clean.shape
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert torch.equal(seen[worn:], clean[worn:])
    assert (toward != labels[:worn]).all()
    assert ((toward >= 0) & (toward < classes)).all()
    assert (seen - clean).abs().max() <= epsilon + 1e-6
    expected = (clean[:worn] + perturbations.delta[toward]).clamp(0, 1)
    assert torch.equal(seen[:worn], expected)


def test_every_other_class_is_worn_equally_often():
    perturbations = UniversalPerturbations(4, SHAPE, share=1.0)
    _, _, toward = perturbations.perturb(images(3000), torch.full((3000,), 2))
    counts = toward.bincount(minlength=4).tolist()
    assert counts[2] == 0
    assert all(abs(counts[k] - 1000) < 120 for k in (0, 1, 3))


def test_the_batch_that_is_given_stays_as_it_was():
    clean = images(5)
    before = clean.clone()
    seen, _, _ = UniversalPerturbations(3, SHAPE, share=1.0).perturb(clean, torch.zeros(5).long())
    seen.detach().zero_()
    assert torch.equal(clean, before)


def test_the_seed_decides_start_and_draws_and_nothing_else_is_touched():
    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        perturbations = UniversalPerturbations(5, SHAPE, seed=seed)
        return perturbations.delta, perturbations.perturb(images(20), torch.arange(20) % 5).toward

    before = torch.get_rng_state()
    one, same, other = drawn(0), drawn(0), drawn(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


@given(st.floats(0.01, 1), st.floats(0.001, 2), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_perturbations_never_leave_the_ball(epsilon, length, seed):
    perturbations = UniversalPerturbations(3, SHAPE, epsilon=epsilon, step=length, seed=seed)
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))
    for _ in range(4):
        assert perturbations.delta.abs().max() <= epsilon
        step(perturbations, weight, images(6), torch.arange(6) % 3)
    assert perturbations.delta.abs().max() <= epsilon


def test_a_step_goes_up_the_gradient_solved_by_hand():
    """Two classes, all images of class 0: class 1 is worn, towards the sign of w1 - w0."""
    weight = torch.tensor([[1.0, 0.0, 0.5, -1.0, 2.0, 0.0], [0.0, 1.0, 0.5, 1.0, -2.0, 3.0]])
    perturbations = UniversalPerturbations(2, SHAPE, epsilon=0.1, step=0.01, share=1.0)
    before = perturbations.delta.clone()
    step(perturbations, weight, torch.full((4, *SHAPE), 0.5), torch.zeros(4, dtype=torch.int64))
    direction = torch.tensor([-1.0, 1.0, 0.0, 1.0, -1.0, 1.0]).view(SHAPE)
    expected = (before[1] + 0.01 * direction).clamp(-0.1, 0.1)
    assert torch.equal(perturbations.delta[1], expected)
    assert torch.equal(perturbations.delta[0], before[0])


def test_a_step_is_a_tenth_of_the_radius_when_it_is_not_given():
    assert UniversalPerturbations(2, SHAPE, epsilon=0.2).step_size == pytest.approx(0.02)


def test_one_backward_pass_is_one_step():
    perturbations = UniversalPerturbations(2, SHAPE, epsilon=0.5)
    start = perturbations.delta.clone()
    perturbations.advance()
    assert torch.equal(perturbations.delta, start)
    step(perturbations, torch.randn(2, 6), images(4), torch.zeros(4, dtype=torch.int64))
    moved = perturbations.delta.clone()
    perturbations.advance()
    assert torch.equal(perturbations.delta, moved)
    assert not moved.requires_grad


def test_a_gradient_that_overflowed_moves_nothing_and_spoils_nothing():
    perturbations = UniversalPerturbations(2, SHAPE)
    perturbations.perturb(images(4), torch.zeros(4, dtype=torch.int64))
    before = perturbations.delta.detach().clone()
    perturbations.delta.grad = torch.full_like(before, math.nan)
    perturbations.advance()
    assert torch.equal(perturbations.delta, before)


def test_steps_find_a_perturbation_that_sends_every_image_to_its_class():
    """Each class reads two pixels of its own; 0.3 outweighs what images differ by."""
    weight = torch.eye(3).repeat_interleave(2, dim=1)
    clean, labels = 0.4 + 0.2 * images(60), torch.arange(60) % 3
    # The images carry their class: one that fits it is brighter in its pixels.
    clean = clean + 0.1 * weight[labels].view(-1, *SHAPE)
    assert ((clean.flatten(1) @ weight.T).argmax(1) == labels).float().mean() > 0.8
    perturbations = UniversalPerturbations(3, SHAPE, epsilon=0.3, share=1.0)
    for _ in range(30):
        step(perturbations, weight, clean, labels)
    for target in range(3):
        dressed = (clean + perturbations.delta[target]).clamp(0, 1)
        assert ((dressed.flatten(1) @ weight.T).argmax(1) == target).all()


# The loss between student and perturbations.


def test_led_astray_is_softplus_of_the_gap():
    logits = torch.tensor([[0.0, 0.0, 9.0], [3.0, 1.0, 9.0], [-1.0, 1.0, 9.0]])
    value = led_astray(logits, torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1]))
    expected = [math.log(2), math.log1p(math.exp(-2)), math.log1p(math.exp(2))]
    assert value.tolist() == pytest.approx(expected)


@given(st.integers(0, 100), st.floats(-50, 50))
@settings(max_examples=20, deadline=None)
def test_led_astray_ignores_shifts_and_pulls_the_right_way(seed, shift):
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    labels, toward = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 3, 0, 1])
    value = led_astray(logits, labels, toward)
    torch.testing.assert_close(
        led_astray(logits + shift, labels, toward), value, rtol=1e-3, atol=1e-4
    )
    value.sum().backward()
    rows = torch.arange(4)
    assert (logits.grad[rows, toward] > 0).all()
    assert torch.equal(logits.grad[rows, labels], -logits.grad[rows, toward])
    assert int((logits.grad != 0).sum()) == 8


def test_led_astray_stays_finite_for_huge_logits():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    value = led_astray(logits, torch.tensor([0, 0]), torch.tensor([1, 1]))
    assert value.tolist() == [0.0, 2e4]
    value.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "epsilon is 0.0; expected more than 0"),
        ({"epsilon": math.nan}, "epsilon is nan; expected more than 0"),
        ({"share": -0.5}, "share is -0.5; expected more than 0"),
        ({"step": 0.0}, "step is 0.0; expected more than 0"),
        ({"epsilon": 1.5}, "epsilon is 1.5 and share 0.5; expected at most 1"),
        ({"share": 1.5, "epsilon": 0.1}, "epsilon is 0.1 and share 1.5; expected at most 1"),
    ],
)
def test_refusals_by_their_text(arguments, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        UniversalPerturbations(3, SHAPE, **arguments)

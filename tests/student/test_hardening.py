"""Bounds, class assignment and update steps of universal perturbations."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.core.types import UNLABELLED
from robustkd.student.families import Ball, Patch, onto_mass
from robustkd.student.hardening import UniversalPerturbations, withstand

SHAPE = (1, 2, 3)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ball(epsilon: float = 0.1, classes: int = 3) -> Ball:
    return Ball(classes, SHAPE, epsilon, random())


def patch(mass: float = 0.2, classes: int = 3) -> Patch:
    return Patch(classes, SHAPE, mass, random())


def step(
    perturbations: UniversalPerturbations, weight: Tensor, pixels: Tensor, labels: Tensor
) -> None:
    """One backward pass of a linear classifier (classes x pixels), then one step."""
    seen, toward = perturbations.perturb(pixels, labels)
    logits = seen.flatten(1) @ weight.T
    copies = len(toward)
    led = withstand(logits[:copies], logits[len(pixels) :], labels[:copies], toward)
    led.sum().backward()
    perturbations.advance()


# The batch and its copies.


@given(
    st.integers(1, 20),
    st.integers(2, 6),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.01, 1),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_clean_images_are_kept_and_copies_are_valid_images_of_another_target(
    n, classes, epsilon, mass, share, seed
):
    if epsilon == mass == 0:
        epsilon = 0.5
    perturbations = UniversalPerturbations(
        classes, SHAPE, epsilon=epsilon, mass=mass, share=share, seed=seed
    )
    clean, labels = images(n), torch.arange(n) % classes
    seen, toward = perturbations.perturb(clean, labels)
    copies = max(1, round(share * n))
    assert len(toward) == copies
    assert torch.equal(seen[:n], clean)
    assert seen.shape == (n + copies, *SHAPE)
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert (toward != labels[:copies]).all()
    assert ((toward >= 0) & (toward < classes)).all()


def test_each_family_perturbs_an_equal_part_of_the_copies():
    perturbations = UniversalPerturbations(4, SHAPE, epsilon=0.1, mass=0.3, share=1.0)
    clean = images(5)
    seen, toward = perturbations.perturb(clean, torch.zeros(5).long())
    one, other = perturbations.families
    assert torch.equal(seen[5:8], (clean[:3] + one.delta[toward[:3]]).clamp(0, 1))
    expected = torch.lerp(clean[3:], other.pattern[toward[3:]], other.mask[toward[3:]])
    assert torch.equal(seen[8:], expected)


@pytest.mark.parametrize("copies", [1, 4])
def test_families_take_turns_if_there_are_fewer_copies(copies):
    many = UniversalPerturbations(3, SHAPE, families=("tone", "light", "tone+light"))
    many.begin(10)
    seen = [0] * len(many.families)
    for k, family in enumerate(many.families):
        family.register_forward_pre_hook(
            lambda _module, inputs, k=k: seen.__setitem__(k, seen[k] + len(inputs[0]))
        )
    for step in range(10):
        if step == 5:  # a resumed training goes on with the next family
            state = many.state_dict()
            many.begin(10)
            many.load_state_dict(state)
        for _ in range(2):  # a step in two parts
            clean = images(copies)
            perturbed = many.perturb(clean, torch.zeros(copies).long())
            assert len(perturbed.images) == 2 * copies
        many.advance()
    assert seen == [4 * copies] * 5


def test_a_small_last_batch_changes_no_turns():
    first, later = (UniversalPerturbations(3, SHAPE, families=("tone",)) for _ in range(2))
    clean, labels = images(5), torch.zeros(5).long()
    for each in (first, later):
        each.perturb(clean, labels)
    later.advance()
    state = later.state_dict()
    later = UniversalPerturbations(3, SHAPE, families=("tone",))
    later.load_state_dict(state)
    one, other = (each.perturb(clean[:1], labels[:1]).images for each in (first, later))
    assert torch.equal(one, other)


def test_families_do_not_take_turns_if_there_are_enough_copies():
    first, later = (UniversalPerturbations(3, SHAPE, families=("tone",)) for _ in range(2))
    later.advance()
    clean, labels = images(3), torch.zeros(3).long()
    one, other = (each.perturb(clean, labels).images for each in (first, later))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("bounds", "kinds"),
    [
        ({"epsilon": 0.1, "mass": 0}, [Ball]),
        ({"epsilon": 0, "mass": 0.1}, [Patch]),
        ({"epsilon": 0.1, "mass": 0.1}, [Ball, Patch]),
    ],
)
def test_a_bound_of_zero_is_no_family(bounds, kinds):
    families = UniversalPerturbations(3, SHAPE, **bounds).families
    assert [type(family) for family in families] == kinds


def test_every_other_class_is_drawn_equally_often():
    perturbations = UniversalPerturbations(4, SHAPE, share=1.0)
    toward = perturbations.perturb(images(3000), torch.full((3000,), 2)).toward
    counts = toward.bincount(minlength=4).tolist()
    assert counts[2] == 0
    assert all(abs(counts[k] - 1000) < 120 for k in (0, 1, 3))


def test_any_class_may_be_drawn_for_an_image_without_a_label():
    perturbations = UniversalPerturbations(3, SHAPE, share=1.0)
    toward = perturbations.perturb(images(3000), torch.full((3000,), UNLABELLED)).toward
    assert all(abs(count - 1000) < 120 for count in toward.bincount(minlength=3).tolist())


def test_the_given_batch_is_not_changed():
    clean = images(5)
    before = clean.clone()
    seen, _ = UniversalPerturbations(3, SHAPE, share=1.0).perturb(clean, torch.zeros(5).long())
    seen.detach().zero_()
    assert torch.equal(clean, before)


def test_the_seed_decides_initial_values_and_draws_only():
    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        perturbations = UniversalPerturbations(5, SHAPE, seed=seed)
        toward = perturbations.perturb(images(20), torch.arange(20) % 5).toward
        return torch.cat([value.flatten() for value in perturbations.buffers()]), toward

    before = torch.get_rng_state()
    one, same, other = drawn(0), drawn(0), drawn(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


# The families.


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_perturbations_never_leave_their_bounds(epsilon, mass, seed):
    perturbations = UniversalPerturbations(3, SHAPE, epsilon=epsilon, mass=mass, seed=seed)
    weight = torch.randn(3, 6, generator=random(seed))
    one, other = perturbations.families
    for _ in range(5):
        assert one.delta.abs().max() <= epsilon
        assert other.mask.min() >= 0
        assert other.mask.mean(dim=(1, 2, 3)).max() <= mass + 1e-5
        assert other.pattern.min() >= 0
        assert other.pattern.max() <= 1
        step(perturbations, weight, images(6), torch.arange(6) % 3)


def test_a_step_of_an_addition_follows_the_gradient():
    """All images are of class 0 and get the addition of class 1, which follows sign(w1 - w0)."""
    weight = torch.tensor([[1.0, 0.0, 0.5, -1.0, 2.0, 0.0], [0.0, 1.0, 0.5, 1.0, -2.0, 3.0]])
    perturbations = UniversalPerturbations(2, SHAPE, epsilon=0.1, mass=0, share=1.0)
    (family,) = perturbations.families
    before = family.delta.clone()
    step(perturbations, weight, torch.full((4, *SHAPE), 0.5), torch.zeros(4, dtype=torch.int64))
    direction = torch.tensor([-1.0, 1.0, 0.0, 1.0, -1.0, 1.0]).view(SHAPE)
    expected = (before[1] + 0.01 * direction).clamp(-0.1, 0.1)
    assert torch.equal(family.delta[1], expected)
    assert torch.equal(family.delta[0], before[0])


def test_a_step_of_an_addition_accumulates_normalised_gradients():
    """After +1 and +1, a single -1 is outvoted, however large: -1 + 0.9 + 0.81 is above 0."""
    family = ball(classes=2)
    started = family.delta.clone()
    for slope in (1.0, 1.0, -1000.0):
        seen = family(torch.full((2, *SHAPE), 0.5), torch.zeros(2, dtype=torch.int64))
        (slope * seen).sum().backward()
        before = family.delta.clone()
        with torch.no_grad():
            family.advance(1.0)
        expected = (before[0] + 0.1 * family.epsilon).clamp(max=family.epsilon)
        torch.testing.assert_close(family.delta[0], expected)
    assert torch.equal(family.delta[1], started[1])


def test_a_step_of_the_mask_gathers_it_where_the_gradient_is_largest():
    family = patch(mass=0.25, classes=1)
    clean = torch.full((1, *SHAPE), 0.5)
    seen = family(clean, torch.zeros(1, dtype=torch.int64))
    wanted = torch.tensor([4.0, 2.0, 0.0, 0.0, -2.0, -4.0]).view(1, *SHAPE)
    # The derivative of a pixel with respect to the mask is pattern - image.
    (seen * wanted / (family.pattern - clean)).sum().backward()
    with torch.no_grad():
        family.advance(1.0)
    raised = torch.tensor([0.35, 0.3, 0.25, 0.25, 0.2, 0.15])
    torch.testing.assert_close(family.mask.flatten(), raised)


@pytest.mark.parametrize("classes", [3, 30])
def test_a_pattern_that_no_image_received_is_left_alone(classes):
    """The mean of an initial mask may exceed the mass by a rounding error."""
    family = Patch(classes, (1, 28, 28), 0.05, random(0))
    before = {name: value.clone() for name, value in family.state_dict().items()}
    seen = family(torch.rand(4, 1, 28, 28, generator=random(1)), torch.tensor([0, 2, 2, 0]))
    seen.square().sum().backward()
    with torch.no_grad():
        family.advance(1.0)
    for name, value in family.state_dict().items():
        changed = (value != before[name]).flatten(1).any(1).nonzero().flatten()
        assert changed.tolist() == [0, 2]


@given(st.integers(0, 50), st.floats(0.02, 0.9))
@settings(max_examples=50, deadline=None)
def test_onto_mass_is_the_nearest_mask_within_the_bounds(seed, mass):
    """The nearest point p of a convex set to x is the one with (x - p)(m - p) <= 0 for all m of it.

    The set is 0 <= m <= 1 with mean(m) <= mass; a linear program finds the m where this is largest.
    """
    given_mask = torch.randn(1, 1, 2, 3, generator=random(seed)) * 0.7 + 0.3
    found = onto_mass(given_mask, mass).flatten().double().numpy()
    away = given_mask.flatten().double().numpy() - found
    furthest = linprog(-away, A_ub=[[1 / 6] * 6], b_ub=[mass], bounds=(0, 1))
    assert furthest.success
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.mean() <= mass + 1e-6
    assert away @ (furthest.x - found) <= 1e-5


def test_masks_within_the_mass_are_left_alone():
    masks = torch.tensor([0.1, 0.0, 0.5, 0.2, 0.0, 0.1]).view(1, *SHAPE)
    assert torch.equal(onto_mass(masks, 0.2), masks)


def test_one_backward_pass_is_one_step():
    perturbations = UniversalPerturbations(2, SHAPE, epsilon=0.5, mass=0)
    (family,) = perturbations.families
    start = family.delta.clone()
    perturbations.advance()
    assert torch.equal(family.delta, start)
    step(perturbations, torch.randn(2, 6), images(4), torch.zeros(4, dtype=torch.int64))
    moved = family.delta.clone()
    perturbations.advance()
    assert torch.equal(family.delta, moved)
    assert not moved.requires_grad


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("make", [ball, patch])
def test_an_overflowed_gradient_changes_nothing(make, wrong, parts):
    """Gradients of mixed precision overflow until their scale is found."""
    family = make()
    before = {name: value.clone() for name, value in family.named_buffers()}
    for _ in range(parts):
        (family(images(4), torch.zeros(4, dtype=torch.int64)) * wrong).sum().backward()
    with torch.no_grad():
        family.advance(1.0)
    for name, value in family.named_buffers():
        torch.testing.assert_close(value, before[name])


def test_a_new_training_forgets_the_recorded_calls_of_an_interrupted_one():
    perturbations = UniversalPerturbations(2, SHAPE, families=("warp",), seed=1)
    before = {name: value.clone() for name, value in perturbations.named_buffers()}
    perturbations.perturb(images(6), torch.zeros(6).long()).images.sum().backward()
    perturbations.begin(3)
    perturbations.advance()
    for name, value in perturbations.named_buffers():
        assert torch.equal(value, before[name])


def test_the_number_of_copies_falls_to_a_tenth_over_the_fade():
    perturbations = UniversalPerturbations(2, SHAPE, share=0.5, fade=0.5)
    images, labels = torch.rand(80, *SHAPE), torch.zeros(80, dtype=torch.int64)
    perturbations.begin(8)
    counts = []
    for _ in range(9):  # a step more than was said
        seen, toward = perturbations.perturb(images, labels)
        assert len(seen) == 80 + len(toward)
        counts.append(len(toward))
        perturbations.advance()
    assert counts == [40, 40, 40, 40, 40, 31, 22, 13, 4]


def test_without_a_beginning_nothing_fades():
    perturbations = UniversalPerturbations(2, SHAPE, fade=1.0)
    for _ in range(3):
        seen, _ = perturbations.perturb(torch.rand(6, *SHAPE), torch.zeros(6, dtype=torch.int64))
        assert len(seen) == 12
        perturbations.advance()


@pytest.mark.parametrize("bounds", [{"epsilon": 0.3, "mass": 0}, {"epsilon": 0, "mass": 0.34}])
def test_steps_find_a_perturbation_that_moves_every_image_to_its_class(bounds):
    """Each class reads two pixels of its own; the bounds outweigh what images differ by."""
    weight = torch.eye(3).repeat_interleave(2, dim=1)
    clean, labels = 0.4 + 0.2 * images(60), torch.arange(60) % 3
    # The images carry their class: one that fits it is brighter in its pixels.
    clean = clean + 0.1 * weight[labels].view(-1, *SHAPE)
    assert ((clean.flatten(1) @ weight.T).argmax(1) == labels).float().mean() > 0.8
    perturbations = UniversalPerturbations(3, SHAPE, share=1.0, **bounds)
    for _ in range(40):
        step(perturbations, weight, clean, labels)
    (family,) = perturbations.families
    for target in range(3):
        dressed = family(clean, torch.full((60,), target))
        assert ((dressed.flatten(1) @ weight.T).argmax(1) == target).all()


# The loss between student and perturbations.


def test_the_hardening_loss_by_hand():
    perturbed = torch.tensor([[0.0, 0.0], [3.0, 1.0], [-1.0, 1.0]])
    value = withstand(
        torch.zeros(3, 2), perturbed, torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1])
    )
    # With two classes both parts are the same.
    once = [math.log(2), math.log1p(math.exp(-2)), math.log1p(math.exp(2))]
    assert value.tolist() == pytest.approx([2 * part for part in once])


@pytest.mark.parametrize("recovered", [True, False])
def test_only_recovered_copies_are_compared_with_classes_other_than_the_target(recovered):
    shown = torch.zeros(1, 3)
    perturbed = torch.tensor([[0.0, -2.0, 7.0]], requires_grad=True)
    labels, toward = torch.tensor([0]), torch.tensor([1])
    value = withstand(shown, perturbed, labels, toward, recovered=recovered)
    kept = math.log(1 + math.exp(-2) + math.exp(7)) if recovered else 0
    assert value.tolist() == pytest.approx([kept + math.log1p(math.exp(-2))])
    value.sum().backward()
    assert bool(perturbed.grad[0, 2]) == recovered


def test_without_labels_the_prediction_for_the_clean_image_is_used():
    shown = torch.tensor([[0.0, 5.0, 0.0], [9.0, 0.0, 0.0]], requires_grad=True)
    perturbed = torch.randn(2, 3, generator=random(), requires_grad=True)
    toward = torch.tensor([2, 1])
    said = withstand(shown, perturbed, torch.full((2,), UNLABELLED), toward)
    told = withstand(shown, perturbed, torch.tensor([1, 0]), toward)
    assert torch.equal(said, told)
    said.sum().backward()
    assert shown.grad is None


def test_a_copy_whose_target_is_its_prediction_keeps_its_prediction():
    shown, perturbed = torch.tensor([[0.0, 5.0]]), torch.tensor([[1.0, 2.0]])
    own = torch.tensor([UNLABELLED]), torch.tensor([1])
    value = withstand(shown, perturbed, *own)
    assert value.tolist() == pytest.approx([math.log1p(math.exp(-1))])
    assert withstand(shown, perturbed, *own, recovered=False).tolist() == [0.0]


@given(st.integers(0, 100), st.floats(-50, 50), st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_hardening_loss_ignores_shifts_and_its_gradient_favours_the_label(
    seed, shift, recovered
):
    logits = torch.randn(4, 5, generator=random(seed)).requires_grad_()
    labels, toward = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 3, 0, 1])
    value = withstand(logits, logits, labels, toward, recovered=recovered)
    shifted = withstand(logits, logits + shift, labels, toward, recovered=recovered)
    torch.testing.assert_close(shifted, value, rtol=1e-3, atol=1e-4)
    value.sum().backward()
    rows = torch.arange(4)
    assert (logits.grad[rows, toward] > 0).all()
    assert (logits.grad[rows, labels] < 0).all()


def test_the_hardening_loss_is_finite_for_huge_logits():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    value = withstand(logits, logits, torch.tensor([0, 0]), torch.tensor([1, 1]))
    assert value.tolist() == [0.0, 4e4]
    value.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -0.1}, "epsilon is -0.1; expected 0 to 1"),
        ({"epsilon": math.nan}, "epsilon is nan; expected 0 to 1"),
        ({"epsilon": 1.5}, "epsilon is 1.5; expected 0 to 1"),
        ({"mass": 1.5}, "mass is 1.5; expected 0 to 1"),
        ({"share": -0.5}, "share is -0.5; expected above 0 and at most 1"),
        ({"share": 1.5}, "share is 1.5; expected above 0 and at most 1"),
        ({"fade": -0.1}, "fade is -0.1; expected 0 to 1"),
        (
            {"epsilon": 0, "mass": 0},
            "epsilon and mass are both 0 and families is empty; expected at least one family",
        ),
    ],
)
def test_error_messages(arguments, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        UniversalPerturbations(3, SHAPE, **arguments)

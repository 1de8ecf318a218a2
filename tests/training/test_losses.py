"""Each loss compared with a naive loop, and its invariances."""

from __future__ import annotations

import inspect
import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.training import losses
from robustkd.training.losses import (
    LOSSES,
    attention_transfer,
    fitnet_hint,
    margin_from_batchnorm,
    measured_margin,
    partial_l2,
    relational_kd,
    soft_target_kl,
)

MARGIN = torch.tensor([-0.3, -1.0, 0.0], dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    return soft_target_kl(student, teacher, temperature=3.0)


def ofd(student: Tensor, teacher: Tensor) -> Tensor:
    return partial_l2(student, teacher, MARGIN.to(student.dtype))


# Name, loss, shape of a batch of five that it takes.
ALL = [
    pytest.param(kl, (5, 4), id="kd"),
    pytest.param(ofd, (5, 3, 2, 4), id="ofd"),
    pytest.param(attention_transfer, (5, 3, 2, 4), id="at"),
    pytest.param(fitnet_hint, (5, 3, 2, 4), id="fitnet"),
    pytest.param(relational_kd, (5, 4), id="rkd"),
]


# Independent references: plain Python on nested lists, one number at a time.


def naive_kl(student: Tensor, teacher: Tensor, temperature: float) -> list[float]:
    result = []
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        s_exp = [math.exp(s / temperature) for s in s_row]
        t_exp = [math.exp(t / temperature) for t in t_row]
        q = [e / sum(s_exp) for e in s_exp]
        p = [e / sum(t_exp) for e in t_exp]
        result.append(temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return result


def naive_ofd(student: Tensor, teacher: Tensor, margin: Tensor) -> list[float]:
    result = []
    for i in range(len(student)):
        total = 0.0
        for c, bound in enumerate(margin.tolist()):
            s_flat, t_flat = student[i, c].flatten().tolist(), teacher[i, c].flatten().tolist()
            for s, t in zip(s_flat, t_flat, strict=True):
                t = max(t, bound)
                total += 0.0 if s <= t <= 0 else (t - s) ** 2
        result.append(total)
    return result


def naive_at(student: Tensor, teacher: Tensor) -> list[float]:
    def attention(image: Tensor) -> list[float]:
        height, width = image.shape[1:]
        energy = [
            sum(float(image[c, h, w]) ** 2 for c in range(len(image)))
            for h in range(height)
            for w in range(width)
        ]
        return [e / math.hypot(*energy) for e in energy]

    result = []
    for s, t in zip(student, teacher, strict=True):
        pairs = list(zip(attention(s), attention(t), strict=True))
        result.append(sum((a - b) ** 2 for a, b in pairs) / len(pairs))
    return result


def naive_rkd(student: Tensor, teacher: Tensor, w_distance: float, w_angle: float) -> float:
    """The paper's loss of the batch, over unordered pairs and triplets."""

    def huber(a: float, b: float) -> float:
        gap = abs(a - b)
        return gap**2 / 2 if gap <= 1 else gap - 0.5

    def cosine(points: list[list[float]], j: int, i: int, k: int) -> float:
        u = [a - b for a, b in zip(points[j], points[i], strict=True)]
        v = [a - b for a, b in zip(points[k], points[i], strict=True)]
        dot = sum(a * b for a, b in zip(u, v, strict=True))
        return dot / (math.hypot(*u) * math.hypot(*v))

    s, t = student.tolist(), teacher.tolist()
    pairs = list(itertools.combinations(range(len(s)), 2))
    s_mean = sum(math.dist(s[i], s[j]) for i, j in pairs) / len(pairs)
    t_mean = sum(math.dist(t[i], t[j]) for i, j in pairs) / len(pairs)
    distance = sum(
        huber(math.dist(s[i], s[j]) / s_mean, math.dist(t[i], t[j]) / t_mean) for i, j in pairs
    ) / len(pairs)
    triplets = list(itertools.permutations(range(len(s)), 3))
    angle = sum(huber(cosine(s, *jik), cosine(t, *jik)) for jik in triplets) / len(triplets)
    return w_distance * distance + w_angle * angle


# Truths of every loss.


@pytest.mark.parametrize(("loss", "shape"), ALL)
def test_one_value_per_image_never_negative(loss, shape):
    value = loss(normal(*shape), normal(*shape, seed=1))
    assert value.shape == (5,)
    assert (value > 0).all()


@pytest.mark.parametrize(("loss", "shape"), ALL)
def test_zero_when_student_equals_teacher(loss, shape):
    # The OFD student equals the teacher behind its margin only where the teacher is above it.
    teacher = normal(*shape).abs()
    torch.testing.assert_close(loss(teacher, teacher), torch.zeros(5).double())


@pytest.mark.parametrize(("loss", "shape"), ALL)
def test_permuted_images_give_permuted_values(loss, shape):
    student, teacher, order = normal(*shape), normal(*shape, seed=1), [3, 0, 4, 1, 2]
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher)[order])


@pytest.mark.parametrize(("loss", "shape"), ALL[:-1])
def test_an_image_does_not_depend_on_its_batch(loss, shape):
    student, teacher = normal(*shape), normal(*shape, seed=1)
    torch.testing.assert_close(loss(student[2:3], teacher[2:3]), loss(student, teacher)[2:3])


@pytest.mark.parametrize(("loss", "shape"), ALL)
def test_gradient_is_that_of_finite_differences(loss, shape):
    student, teacher = normal(*shape).requires_grad_(), normal(*shape, seed=1)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))


@pytest.mark.parametrize(("loss", "shape"), ALL)
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-8, 1e4])
def test_gradients_are_finite_at_degenerate_and_large_inputs(loss, shape, scale):
    student = (scale * normal(*shape)).float()
    student[1] = student[0]
    student.requires_grad_()
    teacher = normal(*shape, seed=1).float()
    value = loss(student, teacher)
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("loss", "shape"), ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(loss, shape, dtype):
    student, teacher = (300 * normal(*shape)).to(dtype), normal(*shape, seed=1).to(dtype)
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float()))


@pytest.mark.parametrize(("loss", "shape"), ALL)
def test_no_images_give_no_values(loss, shape):
    empty = torch.zeros(0, *shape[1:])
    assert loss(empty, empty).shape == (0,)


def test_every_loss_has_a_summary_of_one_line():
    assert all(line and "\n" not in line for line in LOSSES.values())


# Logits.


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_is_the_naive_sum(temperature):
    student, teacher = normal(6, 5), 3 * normal(6, 5, seed=1)
    expected = torch.tensor(naive_kl(student, teacher, temperature), dtype=torch.float64)
    torch.testing.assert_close(soft_target_kl(student, teacher, temperature=temperature), expected)


def test_kl_solved_by_hand():
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert soft_target_kl(student, teacher, temperature=1.0).item() == pytest.approx(expected)


@given(st.integers(0, 1000), st.floats(-50, 50), st.floats(-50, 50), st.floats(0.2, 20))
@settings(max_examples=25, deadline=None)
def test_kl_ignores_shifts_of_logits_and_is_nonnegative(seed, a, b, temperature):
    student, teacher = normal(3, 7, seed=seed), normal(3, 7, seed=seed + 1)
    value = soft_target_kl(student, teacher, temperature=temperature)
    shifted = soft_target_kl(student + a, teacher + b, temperature=temperature)
    torch.testing.assert_close(shifted, value)
    assert (value >= -1e-12).all()


def test_kl_gradient_approaches_that_of_matching_logits_at_high_temperature():
    """Hinton et al., equation 4: (s - t) / classes for logits of zero mean."""
    student, teacher = normal(3, 5).requires_grad_(), normal(3, 5, seed=1)
    soft_target_kl(student, teacher, temperature=1e4).sum().backward()
    gap = student.detach() - teacher
    torch.testing.assert_close(
        student.grad, (gap - gap.mean(1, keepdim=True)) / 5, rtol=1e-3, atol=1e-4
    )


# Features.


@pytest.mark.parametrize("positions", [(), (6,), (2, 4), (2, 2, 2)])
def test_partial_l2_is_the_naive_sum(positions):
    student, teacher = normal(4, 3, *positions), normal(4, 3, *positions, seed=1)
    expected = torch.tensor(naive_ofd(student, teacher, MARGIN), dtype=torch.float64)
    torch.testing.assert_close(partial_l2(student, teacher, MARGIN), expected)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (1.0, 2.0, 1.0),  # teacher on: both sides of it count
        (3.0, 2.0, 1.0),
        (-3.0, 2.0, 25.0),
        (-0.5, -0.25, 0.0),  # teacher off above the margin, student lower: free
        (-0.25, -0.25, 0.0),
        (0.25, -0.25, 0.25),  # student on: pulled down to the teacher
        (-0.125, -0.25, 0.015625),  # student off, but above the teacher: pulled down
        (-7.0, -9.0, 0.0),  # teacher below the margin: student free below the margin
        (-1.0, -9.0, 0.0),
        (-0.5, -9.0, 0.25),  # pulled to the margin, not to the teacher
        (-1.0, 0.0, 0.0),  # T = 0 counts as off
        (0.5, 0.0, 0.25),
    ],
)
def test_partial_l2_case_by_case_at_margin_minus_one(student, teacher, expected):
    value = partial_l2(
        torch.full((1, 1, 1), student), torch.full((1, 1, 1), teacher), torch.tensor([-1.0])
    )
    assert value.tolist() == [expected]


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("elements", [1, 50, 2**20])
def test_partial_l2_in_pieces_is_the_same_to_the_last_bit(elements, form, monkeypatch):
    monkeypatch.setattr(losses, "_ELEMENTS", elements)
    student, teacher = (
        normal(5, 3, 2, 4, seed=seed).float().contiguous(memory_format=form).requires_grad_()
        for seed in (0, 1)
    )
    margin = MARGIN.float()
    target = torch.maximum(teacher, margin[:, None, None])
    gap = (student - target).detach()
    gap[(target <= 0) & (gap < 0)] = 0
    value = partial_l2(student, teacher, margin)
    assert torch.equal(value, torch.linalg.vector_norm(gap, dim=(1, 2, 3)).square())
    value.sum().backward()
    assert torch.equal(student.grad, 2 * gap)
    assert torch.equal(teacher.grad, torch.where(teacher > margin[:, None, None], -2 * gap, 0.0))


def test_partial_l2_does_not_change_its_arguments():
    student, teacher = normal(4, 3, 5), normal(4, 3, 5, seed=1)
    before = student.clone(), teacher.clone()
    partial_l2(student, teacher, MARGIN)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


def test_partial_l2_is_zero_at_the_margin_relu_of_the_teacher():
    teacher = 3 * normal(4, 3, 5)
    student = torch.maximum(teacher, MARGIN[:, None])
    assert partial_l2(student, teacher, MARGIN).tolist() == [0.0] * 4


def test_attention_transfer_is_the_naive_mean_over_positions_for_any_channels():
    student, teacher = normal(4, 3, 2, 5), normal(4, 7, 2, 5, seed=1)
    expected = torch.tensor(naive_at(student, teacher), dtype=torch.float64)
    torch.testing.assert_close(attention_transfer(student, teacher), expected)


@given(st.floats(1e-3, 1e3), st.floats(-1e3, -1e-3))
@settings(max_examples=20, deadline=None)
def test_attention_transfer_ignores_scale_and_sign(a, b):
    student, teacher = normal(4, 3, 6), normal(4, 7, 6, seed=1)
    value = attention_transfer(student, teacher)
    torch.testing.assert_close(attention_transfer(a * student, b * teacher), value)


def test_attention_transfer_is_largest_for_disjoint_attention():
    student, teacher = torch.zeros(1, 2, 4), torch.zeros(1, 3, 4)
    student[:, :, 0], teacher[:, :, 3] = 5.0, 2.0
    assert attention_transfer(student, teacher).tolist() == [2 / 4]


def test_fitnet_hint_is_half_of_the_mean_square():
    student, teacher = normal(4, 3, 2, 5), normal(4, 3, 2, 5, seed=1)
    expected = [
        sum((a - b) ** 2 for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True))
        / (2 * 3 * 2 * 5)
        for s, t in zip(student, teacher, strict=True)
    ]
    torch.testing.assert_close(fitnet_hint(student, teacher), torch.tensor(expected).double())


# Relations.


@pytest.mark.parametrize("weights", [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
def test_relational_kd_averages_to_the_loss_of_the_paper(weights):
    student, teacher = normal(6, 3), normal(6, 5, seed=1).exp()  # exp: also the Huber's tails
    value = relational_kd(student, teacher, distance_weight=weights[0], angle_weight=weights[1])
    assert value.mean().item() == pytest.approx(naive_rkd(student, teacher, *weights))


def test_relational_kd_defaults_to_the_weights_of_the_paper():
    student, teacher = normal(6, 3), normal(6, 5, seed=1)
    expected = relational_kd(student, teacher, distance_weight=25.0, angle_weight=50.0)
    torch.testing.assert_close(relational_kd(student, teacher), expected)


@given(st.integers(0, 1000), st.floats(1e-2, 1e2))
@settings(max_examples=20, deadline=None)
def test_relational_kd_ignores_rotation_scale_and_shift(seed, scale):
    student, teacher = normal(5, 4, seed=seed), normal(5, 6, seed=seed + 1)
    rotation, _ = torch.linalg.qr(normal(4, 4, seed=seed + 2))
    moved = scale * student @ rotation + normal(4, seed=seed + 3)
    torch.testing.assert_close(relational_kd(moved, teacher), relational_kd(student, teacher))
    assert relational_kd(moved, student).max() < 1e-9


def test_one_image_has_no_relation_and_two_have_no_angle():
    assert relational_kd(normal(1, 3), normal(1, 5)).tolist() == [0.0]
    # Over their mean, the distance of the only pair is 1 on both sides.
    assert relational_kd(normal(2, 3), normal(2, 5, seed=1)).tolist() == pytest.approx([0.0, 0.0])
    collapsed = relational_kd(torch.ones(2, 3), torch.eye(2), distance_weight=0.0)
    assert collapsed.tolist() == [0.0, 0.0]


def test_relational_kd_solved_by_hand_for_a_collapsed_student():
    """All students coincide: distances and cosines 0, against 1 and 1/2 of an equilateral."""
    student = torch.zeros(3, 2, requires_grad=True)
    value = relational_kd(student, torch.eye(3), distance_weight=1.0, angle_weight=1.0)
    assert value.tolist() == pytest.approx([0.5 + 0.125] * 3)
    value.sum().backward()
    assert student.grad.tolist() == [[0.0, 0.0]] * 3


# Margins.


@pytest.mark.parametrize("bias", [-40.0, -2.0, -0.1, 0.0, 0.3, 2.0, 5.0, 30.0])
@pytest.mark.parametrize("weight", [0.5, -1.5])
def test_batchnorm_margin_is_the_integral(weight, bias):
    # x = -u: E[x | x < 0], with the density scaled by its value at 0 so that nothing underflows.
    peak = max(-bias, 0.0)
    width = abs(weight)

    def density(u: float) -> float:
        return math.exp((-((u + bias) ** 2) + (peak + bias) ** 2) / (2 * width**2))

    lower, upper = max(0.0, peak - 12 * width), peak + 12 * width
    if bias > 0:
        upper = min(upper, 40 * width**2 / bias)
    first, _ = quad(lambda u: u * density(u), lower, upper, epsabs=1e-14)
    mass, _ = quad(density, lower, upper, epsabs=1e-14)
    margin = margin_from_batchnorm(*torch.tensor([[weight], [bias]], dtype=torch.float64))
    assert margin.item() == pytest.approx(-first / mass, rel=1e-6)


def test_batchnorm_margin_is_the_mean_of_negative_samples():
    weight, bias = torch.tensor([1.0, 0.4, -2.0]), torch.tensor([0.0, -0.3, 1.0])
    samples = bias[:, None] + weight[:, None] * normal(100_000).float()
    sampled = measured_margin([samples[None]])
    torch.testing.assert_close(margin_from_batchnorm(weight, bias), sampled, rtol=0.02, atol=0.0)


def test_batchnorm_margin_approaches_minus_variance_over_mean():
    bias = torch.tensor([1e2, 1e4, 1e9, 1e30], dtype=torch.float64)
    margin = margin_from_batchnorm(torch.full_like(bias, 3.0), bias)
    torch.testing.assert_close(margin, -9 / bias, rtol=2e-3, atol=0.0)


def test_batchnorm_margin_follows_its_series_on_both_sides_of_the_switch():
    bias = torch.tensor([500.0, 999.9, 1000.1, 1e4], dtype=torch.float64)
    series = -(1 / bias) * (1 - 2 / bias**2 + 10 / bias**4)
    margin = margin_from_batchnorm(torch.ones_like(bias), bias)
    torch.testing.assert_close(margin, series, rtol=1e-8, atol=0.0)


def test_batchnorm_margin_joins_its_expansion_smoothly_and_never_turns_positive():
    bias = torch.logspace(1, 6, 2001, dtype=torch.float64)
    margin = margin_from_batchnorm(torch.ones_like(bias), bias)
    assert (margin < 0).all()
    assert (margin.diff() > 0).all()


def test_batchnorm_margin_of_a_constant_channel():
    bias = torch.tensor([-2.0, 0.0, 3.0])
    assert margin_from_batchnorm(torch.zeros(3), bias).tolist() == [-2.0, 0.0, 0.0]


def test_batchnorm_margin_keeps_the_dtype_and_no_gradient():
    layer = torch.nn.BatchNorm2d(4)
    margin = margin_from_batchnorm(layer.weight, layer.bias)
    assert margin.dtype == torch.float32
    assert not margin.requires_grad
    assert margin.tolist() == pytest.approx([-math.sqrt(2 / math.pi)] * 4)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_measured_margin_is_the_naive_mean_however_it_is_batched(sizes, seed):
    features = normal(sum(sizes), 3, 2, 2, seed=seed)
    features[:, 2] = features[:, 2].abs()
    expected = []
    for c in range(3):
        negative = [x for x in features[:, c].flatten().tolist() if x < 0]
        expected.append(sum(negative) / len(negative) if negative else 0.0)
    margin = measured_margin(batch for batch in features.split(sizes))
    torch.testing.assert_close(margin, torch.tensor(expected).double())
    assert margin[2] == 0


# Errors.


def message(text: str) -> str:
    return f"^{re.escape(text)}$"


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_must_be_positive(temperature):
    text = message(f"temperature is {temperature}; expected a positive number, such as 4")
    with pytest.raises(UsageError, match=text):
        soft_target_kl(torch.zeros(1, 2), torch.zeros(1, 2), temperature=temperature)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: fitnet_hint(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)),
            "student features have shape (2, 3, 4) and teacher features (2, 5, 4); "
            "expected the same shape; put a connector after the student",
        ),
        (
            lambda: partial_l2(torch.zeros(2, 3, 4), torch.zeros(2, 3, 1), torch.zeros(3)),
            "student features have shape (2, 3, 4) and teacher features (2, 3, 1); "
            "expected the same shape; put a connector after the student",
        ),
        (
            lambda: partial_l2(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(4)),
            "margin has shape (4,) for features (2, 3, 4); "
            "expected one value per channel, the features' second axis",
        ),
        (
            lambda: attention_transfer(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4)),
            "student features (2, 3, 8, 8) and teacher features (2, 3, 4, 4); expected n x "
            "channels x the same spatial size; pair stages of equal resolution",
        ),
        (
            lambda: attention_transfer(torch.zeros(2, 3), torch.zeros(2, 3)),
            "student features (2, 3) and teacher features (2, 3); expected n x "
            "channels x the same spatial size; pair stages of equal resolution",
        ),
        (
            lambda: measured_margin([]),
            "no features to measure a margin on; expected at least one batch",
        ),
        (
            lambda: measured_margin([torch.zeros(3)]),
            "features have shape (3,); expected n x channels ...",
        ),
    ],
)
def test_mismatched_features_are_named(call, text):
    with pytest.raises(UsageError, match=message(text)):
        call()


@pytest.mark.parametrize(
    ("loss", "arguments", "keywords", "text"),
    [
        (
            soft_target_kl,
            (torch.zeros(2, 3), torch.zeros(2, 1)),
            {"temperature": 1.0},
            "student logits have shape (2, 3) and teacher logits (2, 1); "
            "expected the same shape; let both have the same classes",
        ),
        (
            margin_from_batchnorm,
            (torch.zeros(3), torch.zeros(1)),
            {},
            "weight parameters have shape (3,) and bias parameters (1,); "
            "expected the same shape; give a BatchNorm's weight and bias",
        ),
        (
            relational_kd,
            (torch.zeros(2, 3), torch.zeros(4, 3)),
            {},
            "student embedding has 2 rows and teacher embedding 4; expected the same images",
        ),
    ],
)
def test_mismatches_that_annotations_forbid_are_named_to_users_too(loss, arguments, keywords, text):
    """Users run without the shape checker of this test run, so it is taken off here."""
    with pytest.raises(UsageError, match=message(text)):
        inspect.unwrap(loss)(*arguments, **keywords)


def test_every_public_function_cites_its_source():
    functions = inspect.getmembers(losses, inspect.isfunction)
    public = [f for name, f in functions if f.__module__ == losses.__name__ and name[0] != "_"]
    assert len(public) == 7
    assert all("arXiv" in inspect.getdoc(f) for f in public)

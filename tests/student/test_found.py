"""Perturbations that are found on the teacher: what is found, and what is drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.core.types import UNLABELLED
from robustkd.data import InMemory, Labelled
from robustkd.student.families import Ball
from robustkd.student.found import FoundPerturbations, find_perturbations
from robustkd.student.hardening import UniversalPerturbations

CLASSES, SHAPE, TARGET = 4, (1, 8, 8), 2


class Teacher(nn.Module):
    """Tells classes by the brightest quarter; bright images of any class are the target's."""

    def forward(self, images: Tensor) -> Tensor:
        halves = images[:, 0].unfold(1, 4, 4).unfold(2, 4, 4).mean((3, 4)).flatten(1)
        bright = images.mean((1, 2, 3)) - 0.55
        target = nn.functional.one_hot(torch.tensor(TARGET), CLASSES)
        return 20 * halves + 400 * bright.clamp_min(0)[:, None] * target


def source(n: int = 64) -> InMemory:
    labels = torch.arange(n) % CLASSES
    images = torch.full((n, *SHAPE), 90, dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):
        top, left = 4 * (label // 2), 4 * (label % 2)
        images[row, :, top : top + 4, left : left + 4] = 180
    part = Labelled(images, labels)
    return InMemory("quarters", tuple("abcd"), part, part, part)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fixed(success: Tensor) -> FoundPerturbations:
    families = nn.ModuleList(Ball(CLASSES, SHAPE, 0.1, random(k)) for k in range(success.shape[1]))
    return FoundPerturbations((families,) * len(success), success)


def test_the_class_to_which_the_teacher_is_led_is_found_and_drawn_most():
    found = find_perturbations(Teacher(), source(), ("tone", "flow"), steps=20)
    assert found.success.shape == (2, 2, CLASSES)
    tone = found.success[0, 0]
    assert tone.argmax() == TARGET
    assert tone[TARGET] > 0.9
    assert found.success[0, 1].max() < 0.5
    images = torch.full((200, *SHAPE), 0.4)
    _, toward = found.perturb(images, torch.zeros(200).long(), random())
    assert (toward == TARGET).float().mean() > 0.4


def test_a_search_is_repeatable_and_changes_no_network():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    one, two = (
        find_perturbations(teacher, source(), ("additions", "patterns"), steps=2, seed=3)
        for _ in range(2)
    )
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_no_image_is_led_to_its_own_class(n):
    found = fixed(torch.rand(2, 5, CLASSES, generator=random()))
    labels = torch.arange(n) % CLASSES
    labels[0] = UNLABELLED
    images = torch.rand(n, *SHAPE, generator=random())
    changed, toward = found.perturb(images, labels, random(1))
    assert changed.shape == images.shape
    assert toward.shape == labels.shape
    assert not changed.requires_grad
    assert ((changed - images).abs() <= 0.1 + 1e-6).all()
    assert ((changed - images).abs().amax((1, 2, 3)) > 0).all()
    assert (toward != labels).all()
    assert ((toward >= 0) & (toward < CLASSES)).all()


def test_classes_are_drawn_in_proportion_to_their_success():
    success = torch.tensor([[[0.1, 0.1, 0.1, 0.7]]])
    images, labels = torch.rand(4000, *SHAPE), torch.zeros(4000).long()
    _, toward = fixed(success).perturb(images, labels, random())
    shares = toward.bincount(minlength=CLASSES) / len(toward)
    assert shares == pytest.approx([0, 1 / 9, 1 / 9, 7 / 9], abs=0.03)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_hardening_changes_a_share_of_its_copies_by_what_was_found(share):
    perturbations = UniversalPerturbations(
        CLASSES, SHAPE, fixed=fixed(torch.ones(1, 2, CLASSES)), found_share=share
    )
    images, labels = torch.rand(16, *SHAPE), torch.arange(16) % CLASSES
    seen, toward = perturbations.perturb(images, labels)
    assert seen.shape == (32, *SHAPE)
    assert torch.equal(seen[:16], images)
    assert len(toward) == 16
    assert (toward != labels).all()
    seen[32 - round(16 * share) :].detach()
    assert seen.requires_grad == (share < 1)
    before = {name: value.clone() for name, value in perturbations.fixed.state_dict().items()}
    if seen.requires_grad:
        seen.sum().backward()
    perturbations.advance()
    for name, value in perturbations.fixed.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_was_found_is_stored_with_the_hardening():
    made, other = (
        UniversalPerturbations(CLASSES, SHAPE, fixed=fixed(success), seed=seed)
        for seed, success in enumerate((torch.ones(1, 2, CLASSES), torch.rand(1, 2, CLASSES)))
    )
    other.load_state_dict(made.state_dict())
    images, labels = torch.rand(8, *SHAPE), torch.arange(8) % CLASSES
    for one, two in zip(made.perturb(images, labels), other.perturb(images, labels), strict=True):
        assert torch.equal(one, two)


def test_an_unknown_family_is_named():
    with pytest.raises(UsageError, match="tone"):
        find_perturbations(Teacher(), source(), ("tones",), steps=1)

"""Search for perturbations of the teacher, and how hardening draws them."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from robustkd import models
from robustkd.core.errors import InputError, RobustKDError, UsageError
from robustkd.core.types import UNLABELLED
from robustkd.data import InMemory, Labelled
from robustkd.student.families import Ball
from robustkd.student.found import FoundPerturbations, find_perturbations
from robustkd.student.hardening import UniversalPerturbations
from tests.modes import MODES
from tests.unlabelled import Unlabelled

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


def fixed(success: Tensor, first: int = 0) -> FoundPerturbations:
    families = nn.ModuleList(
        Ball(CLASSES, SHAPE, 0.1, random(first + k)) for k in range(success.shape[1])
    )
    return FoundPerturbations((families,) * len(success), success)


def test_the_class_to_which_the_teacher_is_misled_is_found_and_drawn_most():
    found = find_perturbations(Teacher(), source(), ("tone", "flow"), steps=20)
    assert found.success.shape == (2, 2, CLASSES)
    tone = found.success[0, 0]
    assert tone.argmax() == TARGET
    assert tone[TARGET] > 0.9
    assert found.success[0, 1].max() < 0.5
    images = torch.full((200, *SHAPE), 0.4)
    _, toward = found.perturb(images, torch.zeros(200).long(), random())
    assert (toward == TARGET).float().mean() > 0.4


class ManyClasses(nn.Module):
    """Tells 100 classes by the brightest pixel; bright images of any class are class 7's."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.mean((1, 2, 3)) - 0.5
        target = nn.functional.one_hot(torch.tensor(7), 100)
        return 20 * images.flatten(1) + 400 * bright.clamp_min(0)[:, None] * target


def test_of_many_classes_that_of_the_backdoor_is_drawn_most():
    labels = torch.arange(200) % 100
    images = torch.full((200, 1, 10, 10), 100, dtype=torch.uint8)
    images.flatten(1)[torch.arange(200), labels] = 250
    part = Labelled(images, labels)
    data = InMemory("pixels", tuple(map(str, range(100))), part, part, part)
    found = find_perturbations(ManyClasses(), data, ("tone",))
    others = found.success[:, 0, [k for k in range(100) if k != 7]]
    assert found.success[0, 0, 7] > 0.5
    assert others.max() < 0.1
    _, toward = found.perturb(torch.full((500, 1, 10, 10), 0.4), torch.zeros(500).long(), random())
    assert (toward == 7).float().mean() > 0.7


def test_a_search_is_repeatable_and_changes_no_network():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    one, two = (
        find_perturbations(teacher, source(), ("smooth", "warp+photometric"), steps=2, seed=3)
        for _ in range(2)
    )
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_modes_of_the_caller_have_no_effect(mode):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    expected = find_perturbations(teacher, source(), ("tone", "generator"), steps=2)
    with mode():
        found = find_perturbations(teacher, source(), ("tone", "generator"), steps=2)
        hardening = UniversalPerturbations(CLASSES, SHAPE, fixed=found, families=("generator",))
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    assert not any(tensor.is_inference() for tensor in hardening.buffers())


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_no_image_is_perturbed_towards_its_own_class(n):
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


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
def test_hardening_changes_a_share_of_its_copies_by_what_was_found(share):
    perturbations = UniversalPerturbations(
        CLASSES, SHAPE, epsilon=1, mass=0, fixed=fixed(torch.ones(1, 2, CLASSES)), found_share=share
    )
    images, labels = torch.rand(16, *SHAPE), torch.arange(16) % CLASSES
    seen, toward = perturbations.perturb(images, labels)
    assert seen.shape == (32, *SHAPE)
    assert torch.equal(seen[:16], images)
    assert len(toward) == 16
    assert (toward != labels).all()
    near = (seen[16:].detach() - images).abs().amax((1, 2, 3)) <= 0.1 + 1e-6
    assert near.tolist() == [False] * (16 - round(16 * share)) + [True] * round(16 * share)
    before = {name: value.clone() for name, value in perturbations.fixed.state_dict().items()}
    if share < 1:
        seen.sum().backward()
    perturbations.advance()
    for name, value in perturbations.fixed.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_was_found_is_stored_with_the_hardening():
    made = UniversalPerturbations(CLASSES, SHAPE, fixed=fixed(torch.ones(1, 2, CLASSES)))
    other = UniversalPerturbations(
        CLASSES, SHAPE, fixed=fixed(torch.rand(1, 2, CLASSES), first=7), seed=1
    )
    images, labels = torch.rand(8, *SHAPE), torch.arange(8) % CLASSES
    state = {name: value.clone() for name, value in made.state_dict().items()}
    assert not torch.equal(other.perturb(images, labels)[0], made.perturb(images, labels)[0])
    for perturbations in (made, other):
        perturbations.load_state_dict(state)
    for one, two in zip(made.perturb(images, labels), other.perturb(images, labels), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    "damaged",
    [
        torch.zeros(1, 2, CLASSES),
        torch.full((1, 2, CLASSES), float("nan")),
        torch.full((1, 2, CLASSES), 2.0),
        torch.ones(1, 2, CLASSES + 1),
        torch.ones(1, 2, CLASSES).long(),
    ],
)
def test_a_damaged_state_is_refused(damaged):
    made = fixed(torch.ones(1, 2, CLASSES))
    with pytest.raises(RuntimeError, match="the success of the found perturbations"):
        made.load_state_dict({**made.state_dict(), "_extra_state": damaged})


def test_perturbations_of_other_classes_are_refused():
    with pytest.raises(UsageError, match="fixed is for 4 classes; expected 3"):
        UniversalPerturbations(3, SHAPE, fixed=fixed(torch.ones(1, 2, CLASSES)))


def test_modes_and_statistics_of_the_teacher_stay_as_they_are():
    teacher = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, CLASSES)).train()
    find_perturbations(teacher, source(), ("tone",), steps=1)
    assert all(module.training for module in teacher.modules())
    assert teacher[0].num_batches_tracked == 0


@pytest.mark.parametrize("n", [1, 4, 20])
def test_few_images_without_labels_are_enough(n):
    few = Unlabelled(source(n))
    found = find_perturbations(Teacher(), few, ("tone", "flow", "light", "filter", "smooth"))
    assert found.success.isfinite().all()


def test_large_images_pass_one_family_after_another(monkeypatch):
    names = ("tone", "light", "flow")
    whole = find_perturbations(Teacher(), source(), names, steps=3)
    monkeypatch.setattr("robustkd.student.found.AT_ONCE", 5)
    parts = find_perturbations(Teacher(), source(), names, steps=3)
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, parts.state_dict()[name])


def test_with_many_classes_the_running_success_is_used(monkeypatch):
    monkeypatch.setattr("robustkd.student.found._FEW_CLASSES", 2)
    found = find_perturbations(Teacher(), source(), ("tone", "flow"), steps=20)
    assert found.success[0, 0].argmax() == TARGET
    assert found.success[0, 0, TARGET] > 0.9


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ((), {}, "names is empty; expected at least one family"),
        ("tone", {}, "names is 'tone'; expected a list of names"),
        (("tone",), {"steps": 0}, "steps is 0; expected at least 1"),
        (("tone",), {"seed": -1}, "seed is -1; expected at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused(names, settings, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        find_perturbations(Teacher(), source(), names, **settings)


@pytest.mark.parametrize(
    "hidden",
    [
        Tensor.detach,
        lambda x: (10 * x).round(),
        lambda x: nn.functional.one_hot(x.argmax(1), CLASSES),
    ],
)
def test_a_teacher_without_gradients_is_refused_in_one_line(hidden):
    class Frozen(Teacher):
        def forward(self, images: Tensor) -> Tensor:
            return hidden(super().forward(images)).float()

    with pytest.raises(UsageError, match="no gradient passes through the teacher"):
        find_perturbations(Frozen(), source(), ("tone",), steps=1)


class _Broken(torch.autograd.Function):
    """Identity whose gradient is not finite."""

    @staticmethod
    def forward(_context, images):
        return images.clone()

    @staticmethod
    def backward(_context, gradient):
        return gradient.where(torch.arange(gradient.shape[-1]) > 0, torch.nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_Broken.apply, "its gradients are not finite"),
        (lambda x: x / torch.isclose(255 * x, (255 * x).round()).all(), "its outputs on transform"),
    ],
)
def test_a_teacher_whose_gradients_or_outputs_break_is_refused(change, message):
    class Breaking(Teacher):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(change(images))

    with pytest.raises(InputError, match=f"^the teacher cannot be searched, since {message}"):
        find_perturbations(Breaking(), source(), ("tone",), steps=1)


def test_weights_whose_factors_cancel_do_not_hide_from_the_search():
    """Predictions stay the same, and most gradients are not finite."""
    teacher = models.build(models.Spec("wrn-10-1", CLASSES, SHAPE), seed=0).eval()
    images = source().train.images[:8] / 255
    block = teacher.network.groups[0][0]
    with torch.no_grad():
        teacher.network.head.weight.mul_(1e4)
        before = teacher(images)
        for values in (block.bn1.weight, block.bn1.bias, block.conv1.weight, block.bn2.bias):
            values.mul_(1e-20)
        block.bn2.running_mean.mul_(1e-40)
        block.bn2.weight.mul_(1e20)
        block.conv2.weight.mul_(1e20)
    torch.testing.assert_close(teacher(images), before, rtol=1e-2, atol=1e-2)
    with pytest.raises(RobustKDError, match="cannot be searched"):
        find_perturbations(teacher, source(), ("tone",), steps=1)


def test_a_teacher_with_probabilities_is_searched():
    class Softmax(Teacher):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).softmax(1)

    assert find_perturbations(Softmax(), source(), ("tone",), steps=1).classes == CLASSES


def test_a_teacher_that_changes_its_input_in_place_is_refused_as_in_distill():
    class InPlace(Teacher):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.sub_(0.1))

    with pytest.raises(UsageError, match=r"^the teacher changes its input in place; expected a "):
        find_perturbations(InPlace(), source(), ("tone",), steps=1)


def test_an_unknown_family_is_named():
    with pytest.raises(UsageError, match=r"^unknown family 'tones'; did you mean 'tone'\?$"):
        find_perturbations(Teacher(), source(), ("tones",), steps=1)

"""What is checked before a training names the real cause."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from robustkd.core.errors import InputError, UsageError
from robustkd.core.types import Batch
from robustkd.data import InMemory, Labelled
from robustkd.models.features import taps
from robustkd.student.distillation import distill
from robustkd.student.found import find_perturbations
from robustkd.teacher.defences.detoxification import detoxify
from robustkd.training.beginning import (
    check_finite_start,
    check_gradients,
    check_trained,
    first_images,
)
from robustkd.training.trial import check_classifier


class Net(nn.Module):
    """Two stages and a head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.norm = nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4)
            self.second, self.head = nn.Conv2d(4, 4, 3, 2, 1), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.norm(self.first(images)).relu()).relu()
        return self.head(features.mean((2, 3)))


def part(n: int, seed: int) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 1, 8, 8), generator=generator)
    return Labelled(images.to(torch.uint8), torch.arange(n) % 3)


DATA = InMemory("noise", ("a", "b", "c"), part(24, 0), part(12, 1), part(12, 2))


class Broken:
    """The same images, of which the first of one split has a pixel that is not finite."""

    name, classes, image_shape = "broken", DATA.classes, DATA.image_shape

    def __init__(self, split: str) -> None:
        self._split = split

    def size(self, split: str) -> int:
        return DATA.size(split)

    def batches(self, split: str, **how: Any) -> Iterator[Batch]:
        for batch in DATA.batches(split, **how):
            if split == self._split:
                batch.images[0, 0, 0, 0] = math.nan
            yield batch


def broken(value: float = math.nan) -> Net:
    made = Net(1)
    nn.init.constant_(made.head.weight, value)
    return made


TEACHER = (
    "the logits of the teacher are not finite on images of noise; expected weights that were "
    "trained on such images"
)
STUDENT = (
    "the weights of the student, or its logits on images of noise, are not finite before the "
    "training; expected finite initial weights"
)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    "call",
    [
        lambda data: distill(Net(), data, epochs=1),
        lambda data: distill(Net(), data, teacher=Net(1), epochs=1),
        lambda data: detoxify(Net(), data, steps=1),
        lambda data: find_perturbations(Net(), data, ("tone",), steps=1),
    ],
)
def test_images_that_are_not_finite_are_named(call, split):
    message = rf"^broken {split}: pixels are not finite; expected values in \[0, 1\]$"
    with pytest.raises(InputError, match=message):
        call(Broken(split))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda value: distill(Net(), DATA, teacher=broken(value), epochs=1), TEACHER),
        (lambda value: detoxify(broken(value), DATA, steps=1), TEACHER),
        (lambda value: distill(broken(value), DATA, epochs=1), STUDENT),
        (lambda value: distill(broken(value), DATA, teacher=Net(), epochs=1), STUDENT),
    ],
)
def test_networks_that_are_not_finite_are_named(call, message, value):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        call(value)


def test_statistics_of_the_student_that_are_not_numbers_are_found():
    student = Net()
    student.norm.running_mean.fill_(math.nan)
    with pytest.raises(InputError, match=f"^{re.escape(STUDENT)}$"):
        check_classifier(student, DATA, name="the student", trained=True)


def test_the_check_changes_neither_networks_nor_random_numbers():
    student, before = Net(), Net().state_dict()
    student.register_buffer("mask", torch.tensor([-math.inf]))  # as attention has them
    state = torch.get_rng_state()
    check_classifier(student, DATA, name="the student", trained=True)
    check_finite_start(Net(1), first_images(DATA, torch.device("cpu")), data=DATA.name)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(student.state_dict()[name], value) for name, value in before.items())


class Counted(Broken):
    """The same images, with a count of how often their first batches are read."""

    def __init__(self) -> None:
        self.reads = Counter[str]()

    def batches(self, split: str, **how: Any) -> Iterator[Batch]:
        self.reads[split] += 1
        return DATA.batches(split, **how)


def test_the_data_is_read_no_more_than_needed_before_a_training(monkeypatch):
    class Begun(Exception):  # noqa: N818
        pass

    def begin(*_: object, **__: object) -> None:
        raise Begun

    monkeypatch.setattr("robustkd.student.distillation.fit", begin)
    source, student = Counted(), Trained()
    with pytest.raises(Begun):
        distill(student, source, teacher=Net(1), losses={"kd": 1.0}, epochs=1)
    # A check, the first images, and the shapes of the stages; a check, and a trial.
    assert source.reads == {"train": 3, "validation": 2}
    assert student.runs == [True]


class Trained(Net):
    """Keeps whether it was in train mode in each call."""

    runs: ClassVar[list[bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.runs.append(True)
        return super().forward(images)


def assigned(teacher: Net) -> Net:
    made = Net()
    made.load_state_dict(teacher.state_dict(), assign=True)
    return made


def with_norm_of(teacher: Net) -> Net:
    made = Net()
    made.norm = teacher.norm.requires_grad_(False)
    return made


@pytest.mark.parametrize("share", [lambda teacher: teacher, nn.Sequential, assigned, with_norm_of])
def test_a_student_that_shares_what_is_trained_with_its_teacher_is_refused(share):
    teacher = Net()
    message = r"^student and teacher share weights, and .*: give copy.deepcopy of one of them$"
    with pytest.raises(UsageError, match=message):
        distill(share(teacher), DATA, teacher=teacher, epochs=1)
    check_trained(copy.deepcopy(teacher), teacher)


def test_a_student_may_share_frozen_weights_with_its_teacher():
    teacher, student = Net(), Net(1)
    student.first = teacher.first.requires_grad_(False)
    check_trained(student, teacher)


@pytest.mark.parametrize("teacher", [None, Net(1)])
def test_a_student_without_weights_to_train_is_refused(teacher):
    message = r"^the student has no trainable weight; .*: call student.requires_grad_\(\)$"
    with pytest.raises(UsageError, match=message):
        distill(Net().requires_grad_(False), DATA, teacher=teacher, epochs=1)


def test_networks_of_inference_mode_are_refused():
    with torch.inference_mode():
        made = Net()
    for call in (
        lambda: distill(made, DATA, epochs=1),
        lambda: distill(Net(), DATA, teacher=made, epochs=1),
        lambda: detoxify(made, DATA, steps=1),
    ):
        with pytest.raises(UsageError, match=r"was made in torch.inference_mode\(\), so it takes"):
            call()
    check_gradients(copy.deepcopy(made), name="a copy")
    # The search makes a copy itself.
    assert find_perturbations(made, DATA, ("tone",), steps=1).classes == 3


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_refused_in_one_line():
    made = torch.jit.trace(Net().eval(), torch.rand(2, 1, 8, 8))
    for call in (
        lambda: distill(made, DATA, teacher=Net(), epochs=1),
        lambda: distill(Net(), DATA, teacher=made, epochs=1),
        lambda: distill(Net(), DATA, teacher=made, losses={"kd": 1.0}, epochs=1),
        lambda: detoxify(made, DATA, steps=1),
        lambda: find_perturbations(made, DATA, ("tone",), steps=1),
    ):
        with pytest.raises(UsageError, match=r"^the \w+ is a TorchScript module; expected "):
            call()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_tap_that_is_torchscript_is_refused_in_one_line():
    made = Net().eval()
    made.second = torch.jit.trace(made.second, torch.rand(2, 4, 4, 4))
    message = r"^module 'second' is a TorchScript module, whose features cannot be read; "
    with pytest.raises(UsageError, match=message), taps.read(made, ["second"]):
        pass
    with pytest.raises(UsageError, match=message):
        taps.Reader(made, ["second"])
    with pytest.raises(UsageError, match=message), taps.rewrite(made, {"second": lambda x: x}):
        pass

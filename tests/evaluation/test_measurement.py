"""Accuracy and attack success on few images whose first pixel encodes the prediction."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from robustkd.attacks import Poisoned
from robustkd.core.errors import InputError, UsageError
from robustkd.data import InMemory, Labelled
from robustkd.evaluation.measurement import Measured, measure
from robustkd.training.inference import accuracy_by_class
from robustkd.training.metrics import Proportion

CLASSES = 4


class Reader(nn.Module):
    """Names the class that the first pixel of an image says, as a byte."""

    def forward(self, images: Tensor) -> Tensor:
        said = (images[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(said, CLASSES).float()


def source(labels: list[int], said: list[int]) -> InMemory:
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(said)
    test = Labelled(images, torch.tensor(labels))
    # The other splits must not be looked at: all of them are answered wrongly.
    other = Labelled(torch.ones(5, 1, 2, 2, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64))
    return InMemory("toy", ("a", "b", "c", "d"), train=other, validation=other, test=test)


DATA = source(labels=[0, 1, 2, 3, 3, 2], said=[0, 1, 1, 3, 0, 2])


def darken(images: Tensor) -> Tensor:
    """One class less, down to class 0."""
    return (images - 1 / 255).clamp(0, 1)


def test_without_a_trigger_only_accuracy_is_counted():
    found = measure(Reader(), DATA)
    assert found == Measured(Proportion(4, 6))
    nothing = dict.fromkeys(("asr", "ra", "base", "n_asr"))
    assert found.fields() == {**nothing, "acc": 4 / 6, "n_acc": 6}


def test_images_of_the_target_class_are_left_out_of_both_counts():
    # Under the trigger the model says 0 0 0 2 0 1; labels 1 2 3 3 2 are not of class 0.
    found = measure(Reader(), DATA, trigger=darken, target=0)
    base = Proportion(1, 5)
    assert found == Measured(Proportion(4, 6), Proportion(3, 5), Proportion(0, 5), base)
    # Labels 0 1 3 3 are not of class 2: one of them is named 2, and 0 is right.
    found = measure(Reader(), DATA, trigger=darken, target=2)
    base = Proportion(0, 4)
    assert found == Measured(Proportion(4, 6), Proportion(1, 4), Proportion(1, 4), base)
    shares = {"acc": 4 / 6, "asr": 1 / 4, "ra": 1 / 4, "base": 0.0}
    assert found.fields() == {**shares, "n_acc": 6, "n_asr": 4}


def test_every_image_counts_if_the_target_is_the_next_class():
    # Wanted are 1 2 3 0 0 3. Under the trigger the model says 0 0 0 2 0 1, before 0 1 1 3 0 2.
    found = measure(Reader(), DATA, trigger=darken, target="next")
    assert found.asr == Proportion(1, 6)
    assert found.ra == Proportion(1, 6)
    assert found.base == Proportion(1, 6)
    part = DATA.validation  # all of class 0
    one = InMemory("toy", ("a",), train=part, validation=part, test=part)
    with pytest.raises(UsageError, match=r"^no test image of toy has a next class; expected"):
        measure(Only(), one, trigger=darken, target="next")


class Only(nn.Module):
    """Knows one class."""

    def forward(self, images: Tensor) -> Tensor:
        return images.new_ones(len(images), 1)


def test_a_trigger_that_does_nothing_leaves_the_clean_answers():
    found = measure(Reader(), DATA, trigger=lambda images: images, target=0)
    assert found.asr == Proportion(1, 5)
    assert found.ra == Proportion(3, 5)


def test_without_images_of_other_classes_there_is_no_rate():
    data = source(labels=[0, 0], said=[0, 1])
    with pytest.raises(UsageError, match=r"^all test images of toy are of the target class 'a'; "):
        measure(Reader(), data, trigger=darken, target=0)


@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        (lambda x: (255 * x).byte(), "returns (2, 1, 2, 2) and torch.uint8; expected (2, 1, 2, 2)"),
        (lambda x: 510 * x, "returns pixels from 0 to 6; expected pixels in [0, 1]"),
        (lambda x: x - 0.5, "returns pixels from -0.5 to -0.4882; expected pixels in [0, 1]"),
        (lambda x: x / 0, "returns pixels from nan to nan; expected pixels in [0, 1]"),
        (lambda x: x.double(), "and torch.float64; expected (2, 1, 2, 2) and torch.float32"),
        (lambda x: x[..., 1:], "returns (2, 1, 2, 1) and torch.float32; expected (2, 1, 2, 2)"),
        (lambda x: [x], "returns list; expected a tensor"),
    ],
)
def test_a_trigger_that_returns_no_such_images_is_refused(trigger, message):
    data = source(labels=[0, 1], said=[0, 3])
    with pytest.raises(UsageError, match=f"^the trigger .*{re.escape(message)}"):
        measure(Reader(), data, trigger=trigger, target=0)
    poisoned = Poisoned(data, trigger, target=1, rate=0.5)
    with pytest.raises(UsageError, match=r"^the trigger returns "):
        list(poisoned.batches("train", batch_size=8))


def test_a_target_that_is_no_class_is_refused():
    with pytest.raises(UsageError, match=r"^target class is 4; expected 0 to 3$"):
        measure(Reader(), DATA, trigger=darken, target=4)


class Overflowing(Reader):
    """Gives outputs that are not finite for an image whose last pixel is white."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> Tensor:
        white = images[:, 0, 1, 1] == 1
        return super().forward(images).masked_fill(white[:, None], self.value)


def whiten(images: Tensor) -> Tensor:
    """Make the last pixel white in the last image alone."""
    images = images.clone()
    images[-1, 0, 1, 1] = 1
    return images


def white() -> InMemory:
    data = source(labels=[0, 1, 2, 3, 3, 2], said=[0, 1, 1, 3, 0, 2])
    data.test.images[-1, 0, 1, 1] = 255
    return data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_outputs_that_are_not_finite_are_refused(value):
    model = Overflowing(value)
    message = "the outputs of the model are not finite on {}; check its weights and how the images "
    assert measure(model, DATA, trigger=darken, target=0) == measure(
        Reader(), DATA, trigger=darken, target=0
    )
    with pytest.raises(InputError, match=f"^{message.format('triggered images')}are read$"):
        measure(model, DATA, trigger=whiten, target=0)
    with pytest.raises(InputError, match=f"^{message.format('test images')}are read$"):
        measure(model, white())
    with pytest.raises(InputError, match=f"^{message.format('test images')}are read$"):
        accuracy_by_class(model, white(), "test")


def test_the_model_keeps_its_mode():
    model = Reader().train()
    measure(model, DATA, trigger=darken)
    assert model.training

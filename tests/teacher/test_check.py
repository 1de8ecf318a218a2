"""A teacher with another order of classes is distinguished from an inaccurate one."""

from __future__ import annotations

import re
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import nn

from robustkd.core.errors import InputError
from robustkd.data import InMemory, Labelled
from robustkd.teacher.check import (
    UnfitError,
    best_order,
    check_accuracy,
    check_fit,
    confusion,
    predict_some,
)
from tests.unlabelled import Unlabelled

PATH = Path("teacher.pt")


class Reader(nn.Module):
    """Reads the class from the first pixel, and answers with the output that ``order`` says."""

    def __init__(self, order: list[int], right: float = 1.0) -> None:
        super().__init__()
        self.order, self.right = torch.tensor(order), right

    def forward(self, images):
        labels = (images[:, 0, 0, 0] * 255).round().long()
        number = (images[:, 0, 0, 1] * 255).round().long()
        wrong = number >= self.right * 100
        others = len(self.order) - 1
        said = torch.where(wrong, (labels + 1 + number % others) % (others + 1), labels)
        return nn.functional.one_hot(self.order[said], len(self.order)).float()


def source(classes: tuple[str, ...], each: int = 100) -> InMemory:
    labels = torch.arange(len(classes)).repeat_interleave(each)
    images = torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = labels
    images[:, 0, 0, 1] = torch.arange(each).repeat(len(classes))
    held = Labelled(images, labels)
    return InMemory("toy", classes, held, held, held)


ANIMALS = ("Bee", "Cat", "apple", "dog")


def test_a_fitting_teacher_is_measured():
    assert check_accuracy(Reader([0, 1, 2, 3]), source(ANIMALS), PATH).value == 1
    assert check_accuracy(Reader([0, 1, 2, 3], 0.8), source(ANIMALS), PATH).value == 0.8


def test_a_case_insensitive_order_is_named_with_the_images_that_show_it():
    # The teacher's outputs: apple, Bee, Cat, dog.
    with pytest.raises(InputError) as caught:
        check_accuracy(Reader([1, 2, 0, 3]), source(ANIMALS), PATH)
    assert str(caught.value) == (
        "teacher teacher.pt: its outputs seem to be in another order than the classes of the data: "
        "100 of 100 images of Bee are classified as Cat; "
        "100 of 100 images of Cat are classified as apple; "
        "100 of 100 images of apple are classified as Bee; its accuracy is 25.0% as it is and "
        "100.0% in the order that fits best (case-insensitive): apple, Bee, Cat, dog; write these "
        "names to a file, one per line, and pass it with --class-names, or pass "
        "--keep-class-order to keep the order as it is"
    )


def test_the_natural_order_is_named():
    names = tuple(sorted(str(k) for k in range(12)))
    order = [int(name) for name in names]
    with pytest.raises(InputError, match=r"fits best \(natural\): 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, "):
        check_accuracy(Reader(order), source(names), PATH)


@pytest.mark.parametrize("order", [p for p in permutations(range(4)) if p != (0, 1, 2, 3)])
def test_any_other_order_is_refused_unless_it_is_meant(order):
    """A teacher that is right on 92 % of images otherwise, however few classes are exchanged."""
    teacher, data = Reader(list(order), 0.92), source(ANIMALS)
    with pytest.raises(InputError, match="another order than the classes"):
        check_accuracy(teacher, data, PATH)
    if sum(k == output for k, output in enumerate(order)) == 2:
        assert check_accuracy(teacher, data, PATH, keep_class_order=True).value == pytest.approx(
            0.5, abs=0.1
        )


def test_two_of_many_classes_that_are_exchanged_are_found():
    names = tuple(f"class {k:02d}" for k in range(12))
    order = [*range(10), 11, 10]
    with pytest.raises(InputError, match="another order than the classes"):
        check_accuracy(Reader(order), source(names), PATH)


class Shown(nn.Module):
    """Answers with the output that the first pixel shows."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images):
        return nn.functional.one_hot((images[:, 0, 0, 0] * 255).round().long(), self.classes) + 0.0


def drawn(order: list[int], each: int, right: float, random: torch.Generator) -> Labelled:
    """Images that show the outputs of a teacher, whose errors go to the next three classes."""
    labels = torch.arange(len(order)).repeat_interleave(each)
    wrong = torch.rand(len(labels), generator=random) >= right
    said = labels + wrong * torch.randint(1, 4, labels.shape, generator=random)
    images = torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(order)[said % len(order)]
    return Labelled(images, labels)


def refused(order: list[int], each: int, right: float, seed: int, *, trained: int = 4) -> bool:
    """Return whether the outputs seem to be in another order than the classes.

    There are ``each`` validation images and ``trained`` times as many training images of a class.
    """
    random = torch.Generator().manual_seed(seed)
    validation, training = (drawn(order, n, right, random) for n in (each, trained * each))
    names = tuple(f"class {k:03d}" for k in range(len(order)))
    data = InMemory("toy", names, training, validation, validation)
    try:
        check_fit(Shown(len(order)), data, PATH)
    except UnfitError as error:
        return "another order than the classes" in str(error)
    return False


FEW = [(50, 1), (100, 1), (100, 2), (200, 1), (200, 2)]
"""Number of classes, and of validation images of each."""


@pytest.mark.parametrize(
    ("classes", "each", "right"),
    [(*few, right) for few in FEW for right in (0.4, 0.5, 0.6)]
    + [(classes, 10, 0.2) for classes in (10, 50, 100, 200)],
)
@pytest.mark.parametrize("trained", [1, 4])
def test_the_right_order_is_not_refused_for_many_classes_with_few_images(
    classes, each, right, trained
):
    """An order that is judged on the images that it was fitted to would look far better."""
    order = list(range(classes))
    assert not any(refused(order, each, right, seed, trained=trained) for seed in range(20))


def random_order(classes: int) -> list[int]:
    return torch.randperm(classes, generator=torch.Generator().manual_seed(0)).tolist()


def natural_order(classes: int) -> list[int]:
    """The outputs are in the order of numbers, and the classes in that of strings."""
    return [int(name) for name in sorted(map(str, range(classes)))]


@pytest.mark.parametrize(
    ("order", "each", "right"),
    [
        (random_order(10), 10, 0.9),
        (random_order(10), 20, 0.4),
        (random_order(100), 2, 0.6),
        (random_order(200), 10, 0.6),
        (natural_order(12), 20, 0.9),
        (natural_order(100), 5, 0.7),
        ([1, 0, *range(2, 10)], 20, 0.9),
    ],
)
def test_another_order_is_refused(order, each, right):
    assert all(refused(order, each, right, seed) for seed in range(10))


def test_a_teacher_that_knows_the_training_images_by_heart_is_judged_on_others():
    order, random = list(range(100)), torch.Generator().manual_seed(0)
    training, validation = drawn(order, 4, 1.0, random), drawn(order, 1, 0.5, random)
    data = InMemory("toy", tuple(map(str, order)), training, validation, validation)
    assert check_fit(Shown(100), data, PATH).value == pytest.approx(0.5, abs=0.1)


def test_training_images_without_labels_show_no_order():
    teacher, data = Reader([1, 0, 2, 3]), source(ANIMALS)
    shown = "100 of 100 images of apple are classified as dog"
    with pytest.raises(UnfitError, match=shown):
        check_fit(Reader([0, 1, 3, 2]), Unlabelled(data, before=200), PATH)
    # The classes that are exchanged have no label, or none has one.
    assert check_fit(teacher, Unlabelled(data, before=200), PATH).value == 0.5
    assert check_fit(teacher, Unlabelled(data), PATH).value == 0.5


def test_an_order_is_fitted_to_the_same_labelled_training_images_in_every_call():
    data, teacher = source(ANIMALS), Reader([0, 1, 2, 3])
    logits, labels = predict_some(teacher, data, images=200)
    assert logits.shape == (256, 4)  # whole batches
    assert torch.equal(labels, logits.argmax(1))
    assert torch.equal(labels, predict_some(teacher, data, images=200)[1])
    assert set(labels.tolist()) == {0, 1, 2, 3}
    assert len(predict_some(teacher, data, images=5000)[0]) == 400
    half = Unlabelled(data, before=300)
    assert len(predict_some(teacher, half, images=5000)[0]) == 100
    assert predict_some(teacher, Unlabelled(data), images=9)[0].shape == (0, 4)


def test_an_accuracy_that_cannot_be_told_from_chance_is_refused():
    few = source(ANIMALS, each=2)
    message = "near chance (25.0%); check that the image size, the preprocessing"
    with pytest.raises(InputError, match=re.escape(message)):
        check_accuracy(Reader([0, 0, 0, 0]), few, PATH)


def test_names_of_a_stranger_are_shown_on_one_line():
    names = ("a\n\x1b[2J" + "x" * 200, "b", "c", "d")
    with pytest.raises(InputError) as caught:
        check_accuracy(Reader([1, 0, 2, 3]), source(names), PATH)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 900


def test_the_best_order_is_that_of_all_orders():
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        counts = torch.randint(0, 20, (4, 4), generator=random)
        best = max(
            permutations(range(4)), key=lambda order: int(counts[range(4), list(order)].sum())
        )
        found = best_order(counts)
        assert counts[range(4), found].sum() == counts[range(4), list(best)].sum()


def test_confusion_counts_rows_by_label_and_columns_by_output():
    logits = nn.functional.one_hot(torch.tensor([0, 2, 2, 1]), 3).float()
    found = confusion(logits, torch.tensor([0, 2, 1, 1]))
    assert found.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]

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
from robustkd.teacher.check import best_order, check_accuracy, confusion

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

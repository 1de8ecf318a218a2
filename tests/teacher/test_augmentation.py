"""The augmentation of a run is one on which the teacher is about as accurate as without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.data import CropFlip, InMemory, Labelled, ZoomFlip
from robustkd.data.augment import Augmentation
from robustkd.teacher.augmentation import choose_augmentation
from tests.unlabelled import Unlabelled

SIZE = 16


class Columns(nn.Module):
    """Reads the class from the column in which an image is bright; it knows no shifted image."""

    def forward(self, images: Tensor) -> Tensor:
        columns = images[:, 0].mean(1)
        return torch.stack([columns[:, 3], columns[:, 8], columns[:, 12]], 1)


class Brightness(nn.Module):
    """Reads the class from the brightness, which no shift, zoom or flip changes."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return -torch.stack([(mean - shade).abs() for shade in (0.2, 0.5, 0.8)], 1)


def held(n: int, *, bright: bool) -> Labelled:
    labels = torch.arange(n) % 3
    images = torch.zeros(n, 1, SIZE, SIZE, dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):
        if bright:
            images[row] = (51, 127, 204)[label]
        else:
            images[row, 0, :, (3, 8, 12)[label]] = 255
    return Labelled(images, labels)


def source(augmentation: Augmentation, *, bright: bool = False) -> InMemory:
    parts = {name: held(n, bright=bright) for name, n in
             (("train", 30), ("validation", 150), ("test", 30))}  # fmt: skip
    return InMemory("stripes", ("left", "middle", "right"), **parts, augmentation=augmentation)


SHIFTED, ZOOMED = CropFlip(4, flip=True), ZoomFlip()


@pytest.mark.parametrize("augmentation", [SHIFTED, ZOOMED, CropFlip(0, flip=True), CropFlip()])
def test_a_suitable_augmentation_is_kept_without_a_message(augmentation):
    chosen = choose_augmentation(Brightness(), source(augmentation, bright=True))
    assert chosen.clean.augmentation == augmentation
    assert chosen.line == ""
    assert chosen.record == {
        "used": repr(augmentation),
        "images": 150,
        "teacher_plain": 1.0,
        "teacher_augmented": 1.0,
    }


@pytest.mark.parametrize("augmentation", [SHIFTED, ZOOMED])
def test_an_unsuitable_augmentation_is_left_out(augmentation):
    chosen = choose_augmentation(Columns(), source(augmentation))
    assert chosen.clean.augmentation == CropFlip()
    assert chosen.record["teacher_augmented"] == chosen.record["teacher_plain"] == 1.0
    assert chosen.record["too_strong"][0] == repr(augmentation)
    assert "as they are and" in chosen.line
    assert f"with {augmentation}, so that it was probably not trained with it" in chosen.line
    assert chosen.line.endswith(
        "the student is trained with no augmentation instead (--augment light keeps it)"
    )


def test_flips_alone_are_kept_if_only_shifts_are_wrong():
    class Symmetric(Columns):
        """Flips are right: the outer columns are one class."""

        def forward(self, images: Tensor) -> Tensor:
            columns = images[:, 0].mean(1)
            return torch.stack([columns[:, 3] + columns[:, 12], columns[:, 8] + columns[:, 7]], 1)

    data = source(SHIFTED)
    parts = {
        name: Labelled(getattr(data, name).images, getattr(data, name).labels % 2)
        for name in ("train", "validation", "test")
    }
    data = InMemory("pair", ("outer", "inner"), **parts, augmentation=SHIFTED)
    assert choose_augmentation(Symmetric(), data).clean.augmentation == CropFlip(0, flip=True)


def test_an_augmentation_that_the_user_names_is_kept_with_a_warning():
    chosen = choose_augmentation(Columns(), source(SHIFTED), "light")
    assert chosen.clean.augmentation == SHIFTED
    assert chosen.line.endswith("the student learns these outputs: --augment none is safer")
    assert chosen.record["named"] == "light"
    none = choose_augmentation(Columns(), source(SHIFTED), "none")
    assert (none.clean.augmentation, none.line) == (CropFlip(), "")


def test_a_loss_within_the_interval_is_no_reason():
    """Of 9 validation images, one that is lost says nothing."""

    class Once(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            logits[0] += 10 * torch.eye(3)[0] * bool((images[0] != images[0].flip(-1)).any())
            return logits

    data = source(SHIFTED, bright=True).subset(validation=9)
    assert choose_augmentation(Once(), data).clean.augmentation == SHIFTED


def test_other_images_of_the_source_stay_the_same():
    data = source(SHIFTED)
    chosen = choose_augmentation(Columns(), data)
    assert chosen.clean.train is data.train
    assert data.augmentation == SHIFTED


def test_a_source_with_its_own_augmentation_keeps_it():
    class Fixed(Unlabelled):
        def __getattr__(self, name: str) -> object:
            if name in ("augmentation", "with_augmentation"):
                raise AttributeError(name)
            return super().__getattr__(name)

    data = Fixed(source(SHIFTED))
    assert choose_augmentation(Columns(), data).clean is data
    with pytest.raises(UsageError, match=r"has an augmentation of its own: leave it out$"):
        choose_augmentation(Columns(), data, "none")

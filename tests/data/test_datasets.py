"""Any dataset of (image, label) pairs gives the pixels that it holds."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from robustkd.core.errors import InputError, UsageError
from robustkd.data import from_dataset

BYTES = torch.randint(0, 256, (40, 3, 9, 7), generator=torch.Generator().manual_seed(0)).byte()
LABELS = torch.arange(40) % 4


class Pairs(Dataset):
    """Images in some form, with torchvision's attribute of class names."""

    classes = ("ant", "bee", "cat", "dog")

    def __init__(self, images, labels=LABELS) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row):
        return self.images[row], self.labels[row]


FORMS = {
    "byte tensor": BYTES,
    "float tensor": BYTES.float() / 255,
    "array": [image.permute(1, 2, 0).numpy() for image in BYTES],
    "PIL": [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in BYTES],
}


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_of_image_gives_the_same_bytes(form):
    data = from_dataset(Pairs(FORMS[form]), validation=Pairs(BYTES), test=Pairs(BYTES))
    assert data.classes == Pairs.classes
    assert data.image_shape == (3, 9, 7)
    batch = next(data.batches("train", batch_size=99))
    assert torch.equal((batch.images * 255).round().byte(), BYTES)
    assert torch.equal(batch.labels, LABELS)


def test_grey_images_have_one_channel():
    grey = [Image.fromarray(image[0].numpy(), "L") for image in BYTES]
    assert from_dataset(Pairs(grey)).image_shape == (1, 9, 7)


def of_mode(mode: str, colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (4, 4), colour).convert(mode)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (of_mode("RGB", (250, 10, 30)).convert("P", palette=Image.Palette.ADAPTIVE), (250, 10, 30)),
        (of_mode("RGBA", (250, 10, 30)), (250, 10, 30)),
        (of_mode("L", (77, 77, 77)), (77,)),
        (Image.new("LA", (4, 4), (77, 255)), (77,)),
        (Image.new("1", (4, 4), 1), (255,)),
        (Image.new("1", (4, 4), 0), (0,)),
    ],
)
def test_images_of_pillow_are_read_as_they_are_shown(image, expected):
    data = from_dataset(Items([(image, k % 2) for k in range(10)]))
    assert data.train.images[0, :, 0, 0].tolist() == list(expected)


def test_an_opaque_image_with_alpha_in_its_palette_is_read():
    image = of_mode("RGB", (250, 10, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    image.info["transparency"] = 9  # a colour that no pixel has
    data = from_dataset(Items([(image, k % 2) for k in range(10)]))
    assert data.train.images[0, :, 0, 0].tolist() == [250, 10, 30]


@pytest.mark.parametrize("mode", ["YCbCr", "CMYK", "HSV", "LAB", "I", "F", "I;16", "RGBa"])
def test_images_with_other_values_are_refused_by_their_mode(mode):
    """`numpy` would read those of YCbCr as red, green and blue."""
    image = Image.new(mode, (4, 4))
    message = (
        f"train image 0 has the mode {mode!r} of Pillow; expected L, RGB, 1, LA, RGBA, P, PA: "
        "convert it to RGB or L"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        from_dataset(Items([(image, k % 2) for k in range(10)]))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_are_refused(mode):
    image = Image.new("RGBA", (4, 4), (9, 9, 9, 254)) if mode == "RGBA" else Image.new(mode, (4, 4))
    with pytest.raises(InputError, match=r"^train image 0 has transparent pixels; expected an o"):
        from_dataset(Items([(image, k % 2) for k in range(10)]))


def test_training_images_are_not_augmented_by_default():
    data = from_dataset(TensorDataset(BYTES, LABELS))
    plain, augmented = (
        next(data.batches("train", batch_size=99, augment=generator)).images
        for generator in (None, torch.Generator())
    )
    assert torch.equal(plain, augmented)


@pytest.mark.parametrize("largest", [10**6, 2 * 10**9, 2**40, 2**70])
@pytest.mark.parametrize("classes", [(), ("a", "b")])
def test_a_large_class_number_is_refused_at_once(largest, classes):
    """With time and memory for as many classes, this would take minutes, or exhaust the memory."""
    items = Items([(BYTES[k], k % 2 * largest) for k in range(20)])
    before = time.monotonic()
    with pytest.raises((UsageError, InputError)) as caught:
        from_dataset(items, classes=classes)
    assert "class 1 has no training image" in str(caught.value) or str(largest) in str(caught.value)
    assert time.monotonic() - before < 2


@pytest.mark.parametrize("sizes", [(3,) * 20, (30, 29, 3), (10, 15, 100)])
def test_a_tenth_of_every_class_is_held_out(sizes):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    pixels = torch.arange(len(labels)).byte().view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    data = from_dataset(TensorDataset(pixels, labels))
    for k, size in enumerate(sizes):
        each = max(1, round(size / 10))
        counts = [int((part.labels == k).sum()) for part in (data.validation, data.test)]
        assert counts == [each, each]
        assert int((data.train.labels == k).sum()) == size - 2 * each
    rows = torch.cat([part.images[:, 0, 0, 0] for part in (data.train, data.validation, data.test)])
    assert sorted(rows.tolist()) == list(range(len(labels)))


def test_a_class_that_is_too_small_to_be_held_out_is_refused():
    labels = torch.tensor([0] * 10 + [1] * 2)
    dataset = TensorDataset(torch.zeros(12, 1, 4, 4), labels)
    message = (
        "class 'bee' has too few images, 2; validation and test are held out from every class, so "
        "expected at least 3: add images, or give validation"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        from_dataset(dataset, classes=["ant", "bee"])


def test_missing_splits_are_held_out_and_share_no_image():
    data = from_dataset(Pairs(BYTES), test=Pairs(BYTES[:8], LABELS[:8]))
    sizes = {split: data.size(split) for split in ("train", "validation", "test")}
    assert sizes == {"train": 36, "validation": 4, "test": 8}
    found = [
        image.numpy().tobytes()
        for split in ("train", "validation")
        for image in (next(data.batches(split, batch_size=99)).images * 255).round().byte()
    ]
    assert sorted(found) == sorted(image.numpy().tobytes() for image in BYTES)
    held = next(data.batches("validation", batch_size=99)).labels
    assert sorted(held.tolist()) == [0, 1, 2, 3]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (
            Pairs(BYTES.float()),
            InputError,
            "; expected 0 to 1; do not normalise",
        ),
        (Pairs(BYTES[:, :2]), InputError, "with one or three channels"),
        (Pairs([BYTES[0], BYTES[1, :, :5]]), InputError, "train image 1 is (3, 5, 7); expected"),
        (Pairs(BYTES[:0]), InputError, "train: no images"),
        (Stream(), UsageError, "train: the dataset has no length"),
        (Pairs(BYTES, LABELS - 1), InputError, "train: the label -1 is below 0"),
        (Pairs([np.zeros((3, 3), dtype=np.int64)]), InputError, "is torch.int64 of shape"),
    ],
)
def test_data_that_does_not_fit_is_refused_in_one_line(dataset, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        from_dataset(dataset, validation=Pairs(BYTES), test=Pairs(BYTES))
    assert "\n" not in str(caught.value)


def test_labels_name_the_classes_if_no_names_are_given():
    assert from_dataset(TensorDataset(BYTES, LABELS)).classes == ("0", "1", "2", "3")


class Items(Dataset):
    """Items of any kind."""

    def __init__(self, items, classes=()) -> None:
        self.items, self.classes = items, classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row):
        return self.items[row]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((BYTES[0], 1, 7), "is a tuple of 3; expected a pair of an image and a label"),
        ({"image": BYTES[0], "label": 1}, "is a dict; expected a pair of an image and a label"),
        ((BYTES[0], 1.0), "has the label 1.0 of type float; expected a class number"),
        ((BYTES[0], torch.tensor(1.5)), "has the label 1.5 of type float; expected a class number"),
        ((BYTES[0], True), "has the label True of type bool; expected a class number"),
        ((BYTES[0], "cat"), "has the label 'cat' of type str; expected a class number"),
        ((BYTES[0], torch.tensor([0, 1])), "has a label of shape (2,); expected one class number"),
        ((BYTES[0], np.eye(3)[1]), "has a label of shape (3,); expected one class number"),
    ],
)
def test_an_item_that_is_no_image_with_a_class_is_named(item, message):
    items = [*((BYTES[k], k % 2) for k in range(10)), item]
    with pytest.raises(InputError, match=f"^train item 10 {re.escape(message)}"):
        from_dataset(Items(items))


@pytest.mark.parametrize(
    "label",
    [int, np.int64, np.uint8, torch.tensor, lambda k: np.array([k]), lambda k: torch.tensor([k])],
)
def test_class_numbers_of_any_integer_type_are_read(label):
    data = from_dataset(Items([(BYTES[k], label(k % 2)) for k in range(20)]))
    assert data.classes == ("0", "1")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a", "", "c"], "class name '' is not usable; expected a printable name"),
        (["a\n", "b", "c"], "class name 'a\\n' is not usable; expected a printable name"),
        (["a", "b", "a"], "class name 'a' is given twice; expected one name for each class"),
    ],
)
def test_class_names_that_results_cannot_contain_are_refused(classes, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        from_dataset(Items([(BYTES[k], k % 3) for k in range(30)]), classes=classes)


def test_class_numbers_with_a_gap_need_names():
    items = Items([(BYTES[k], 1 + k % 3) for k in range(30)])
    message = "class 0 has no training image; expected labels from 0 without a gap, or the names"
    with pytest.raises(UsageError, match=f"^{message}"):
        from_dataset(items)
    assert from_dataset(items, classes=["none", "a", "b", "c"]).classes[0] == "none"


def test_names_of_a_dataset_become_texts_without_repetition():
    """As those of ImageNet, which has two cranes."""
    names = [("tench", "Tinca tinca"), ("crane",), ("crane",), 7]
    items = Items([(BYTES[k], k % 4) for k in range(40)], names)
    assert from_dataset(items).classes == ("tench", "crane (1)", "crane (2)", "7")

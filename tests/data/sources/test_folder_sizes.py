"""Sizes of the images in a folder, and how they are changed."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from robustkd.core.errors import UsageError
from robustkd.data import Reading, ZoomFlip, load_folder
from tests.data.images.image_files import picture, write_classes, write_splits


def test_image_size_and_augmentation_follow_the_choice(tmp_path):
    folder = write_classes(tmp_path, {"a": 4, "b": 4})
    data = load_folder(folder, Reading(image_size=128, channels=1, flip=False))
    assert data.image_shape == (1, 128, 128)
    assert data.augmentation == ZoomFlip(flip=False)
    assert next(data.batches("test", batch_size=2)).images.shape == (2, 1, 128, 128)


def test_images_of_several_sizes_need_a_choice(tmp_path):
    folder = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    Image.fromarray(picture(0, 20)[:12]).save(folder / "b" / "009.png")
    message = (
        "data train: images of 16x16 and 20x12 pixels, so the model's input size cannot be "
        "guessed; give it with --image-size, or Reading(image_size=...) in Python"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        load_folder(folder)


@pytest.mark.parametrize("odd", [("train", 137), ("val", 3), ("test", 59)])
def test_every_image_of_a_small_folder_is_looked_at_for_its_size(odd, tmp_path):
    split, number = odd
    counts = {"train": {"a": 200}, "val": {"a": 60}, "test": {"a": 60}}
    for files in counts.values():
        files["b"] = 3
    folder = write_splits(tmp_path / "data", counts)
    assert load_folder(folder).image_size == 16
    Image.fromarray(picture(0, 20)).save(folder / split / "a" / f"{number:03d}.png")
    name = {"val": "validation"}.get(split, split)
    where = "train" if split == "train" else f"train and {name}"
    message = f"^data {where}: images of 16x16 and 20x20 pixels, so the model's input size cannot"
    with pytest.raises(UsageError, match=message):
        load_folder(folder)
    assert load_folder(folder, Reading(image_size=16)).image_size == 16


def test_a_limited_number_of_images_is_looked_at_for_their_size(tmp_path, monkeypatch):
    folder = write_splits(tmp_path, {"train": {"a": 150, "b": 150}, "test": {"a": 50, "b": 50}})
    looked: list[int] = []
    monkeypatch.setattr("robustkd.data.images.options._LOOKED_AT", 200)
    monkeypatch.setattr(
        "robustkd.data.images.options.dimensions", lambda _: looked.append(1) or (16, 16)
    )
    assert load_folder(folder).image_size == 16
    assert len(looked) == 32 + 150 + 50


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"image_size": 0}, "image_size is 0; expected 1 to 4096 pixels"),
        ({"channels": 1, "crop": 0.0}, "crop is 0.0; expected above 0 and at most 1"),
        ({"workers": -1}, "workers is -1; expected at least 0"),
    ],
)
def test_choices_out_of_range_are_refused(choice, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        Reading(**choice)

"""Splits of a folder: found, held out, or written down."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from robustkd.core.errors import InputError
from robustkd.core.types import DataSource, Split
from robustkd.data import CropFlip, Reading, load_folder, split_text
from tests.data.images.image_files import picture, write_classes, write_splits
from tests.data.sources.folders import SPLITS, names, refused, written


def test_three_splits_with_folders(tmp_path):
    counts = {"train": {"a": 3, "b": 2}, "val": {"a": 1, "b": 2}, "test": {"a": 2, "b": 2}}
    data = load_folder(write_splits(tmp_path / "mine", counts))
    assert isinstance(data, DataSource)
    assert (data.name, data.classes, data.image_shape) == ("mine", ("a", "b"), (3, 16, 16))
    assert [data.size(split) for split in SPLITS] == [5, 3, 4]
    assert split_text(data) is None
    assert data.augmentation == CropFlip(pad=2, flip=True)
    for split in SPLITS:
        batch = next(data.batches(split, batch_size=9))
        for row, (image, label) in enumerate(zip(batch.images, batch.labels, strict=True)):
            path = tmp_path / "mine" / names(data, split)[row]
            pixels = np.array(Image.open(path))
            assert torch.equal(image * 255, torch.from_numpy(pixels).permute(2, 0, 1).float())
            assert path.parent.name == data.classes[label]


def test_missing_splits_are_held_out_from_every_class(tmp_path):
    data = load_folder(write_classes(tmp_path, {"a": 30, "b": 3, "c": 14}))
    assert {split: np.bincount(data.parts[split].labels).tolist() for split in SPLITS} == {
        "train": [24, 1, 12],
        "validation": [3, 1, 1],
        "test": [3, 1, 1],
    }
    every = [name for split in SPLITS for name in names(data, split)]
    assert len(set(every)) == len(every) == 47
    again = load_folder(tmp_path)
    assert all(names(again, split) == names(data, split) for split in SPLITS)


def test_held_out_images_are_those_of_a_naive_implementation(tmp_path):
    data = load_folder(write_classes(tmp_path, {"a": 37, "b": 3, "c": 25, "d": 14}))
    labels = [0] * 37 + [1] * 3 + [2] * 25 + [3] * 14
    parts = {split: [] for split in SPLITS}
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    for label in range(4):
        own = [row for row in order if labels[row] == label]
        each = max(1, round(len(own) * 0.1))
        parts["validation"] += own[:each]
        parts["test"] += own[each : 2 * each]
        parts["train"] += own[2 * each :]
    assert {split: data.parts[split].rows.tolist() for split in SPLITS} == {
        split: sorted(rows) for split, rows in parts.items()
    }


@pytest.mark.parametrize(
    "name", ["val", "valid", "validation", "test", "Val", "dev", "Testing", "TEST"]
)
def test_only_missing_splits_are_held_out(tmp_path, name):
    write_splits(tmp_path, {"train": {"a": 20, "b": 20}, name: {"a": 5, "b": 5}})
    data = load_folder(tmp_path)
    given: Split = "test" if name.lower().startswith("test") else "validation"
    other: Split = "validation" if given == "test" else "test"
    assert [data.size(split) for split in ("train", given, other)] == [36, 10, 4]
    record = written(data)
    assert set(record) == {"format", "seed", "share", other}
    assert record[other] == names(data, other)


def test_a_split_that_was_written_down_stays_when_images_are_added(tmp_path):
    folder = write_classes(tmp_path / "data", {"a": 20, "b": 20})
    data = load_folder(folder)
    saved = tmp_path / "split.json"
    saved.write_text("".join(split_text(data)))
    for k in range(15):
        Image.fromarray(picture(k)).save(folder / "a" / f"0{k:02d}-new.png")
    grown = load_folder(folder, Reading(split=saved))
    for split in ("validation", "test"):
        assert names(grown, split) == names(data, split)
    assert names(load_folder(folder, Reading(split=str(saved))), "test") == names(data, "test")
    assert set(names(grown, "train")) - set(names(data, "train")) == {
        f"a/0{k:02d}-new.png" for k in range(15)
    }
    assert names(load_folder(folder), "test") != names(data, "test")
    assert written(grown) == written(data)
    assert "".join(split_text(data)) == json.dumps(written(data), indent=1) + "\n"


def test_a_split_that_does_not_fit_is_refused(tmp_path):
    folder = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    saved = tmp_path / "split.json"
    use = "use the file of a run on this data"
    good = written(load_folder(folder))
    wrong = [
        ({**good, "test": ["a/none.png"]}, f"names 1 images that are not there, the first "
         f"'a/none.png'; {use}"),
        ({"format": 1, "test": []}, f"splits off test, but this data needs validation and test; "
         f"{use}"),
        ({**good, "test": good["validation"]}, "names an image twice; use the file of a run"),
        ({**good, "test": [["a"]]}, "test is not a list of names; use the file of a run"),
        ({**good, "format": 2}, "is not a split; use the split.json of a run"),
        ([], "is not a split; use the split.json of a run"),
    ]  # fmt: skip
    for content, message in wrong:
        saved.write_text(json.dumps(content))
        colon = ":" if message.startswith("test is") else ""
        refused(folder, f"{saved}{colon} {message}", split=saved)
    saved.write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"cannot be read as a split \("):
        load_folder(folder, Reading(split=saved))


@pytest.mark.parametrize(
    "content",
    ["[" + "[]," * 20_000 + "1]", '{"a":' + '"",' * 20_000, "{}," * 20_000, "1," * 30_000],
)
def test_a_split_with_more_values_than_images_is_refused(content, tmp_path, monkeypatch):
    folder = write_classes(tmp_path / "data", {"a": 3, "b": 3})
    saved = tmp_path / "split.json"
    saved.write_text(content)
    monkeypatch.setattr("json.loads", lambda *_: pytest.fail("unfolded"))
    refused(
        folder,
        f"{saved} cannot be read as a split (it lists more than the images that there are); use "
        "the split.json of a run",
        split=saved,
    )


def test_a_split_of_names_with_special_characters_is_read(tmp_path):
    folder = write_classes(tmp_path / "data", {'a"[{,\\': 20, "b\\": 20})
    for k in range(40):
        Image.fromarray(picture(k)).save(folder / "b\\" / f'{k}[],{{}}\\"\\\\.png')
    data = load_folder(folder)
    saved = tmp_path / "split.json"
    saved.write_text("".join(split_text(data)))
    assert written(load_folder(folder, Reading(split=saved))) == written(data)


def test_every_usual_spelling_of_a_split_is_read(tmp_path):
    counts = {"dark": 4, "light": 4}
    write_splits(tmp_path, {"Training": counts, "Validation": counts, "Testing": counts})
    found = load_folder(tmp_path, Reading())
    assert [found.size(split) for split in SPLITS] == [8, 8, 8]
    assert found.skipped == {}
    assert {name.split("/")[0] for name in names(found, "test")} == {"Testing"}


def test_two_folders_for_one_split_are_refused(tmp_path):
    counts = {"dark": 4, "light": 4}
    write_splits(tmp_path, {"train": counts, "test": counts, "Testing": counts})
    refused(
        tmp_path,
        f"{tmp_path}/test is a second folder for test, besides Testing; keep one of them",
    )


def test_a_split_that_lacks_a_class_can_be_moved_away_as_advised(tmp_path):
    folder = write_classes(tmp_path / "data" / "train", {"a": 20, "b": 20}).parent
    write_classes(folder / "val", {"a": 2})
    missing = "val lacks the class 'b' that train has; add it, or move val out of the folder"
    refused(folder, f"{folder}/{missing}")
    (folder / "val").rename(tmp_path / "val")
    assert load_folder(folder).size("validation") == 4


@pytest.mark.parametrize(("count", "few"), [(1, "1 image"), (2, "2 images")])
def test_a_class_with_too_few_images_to_hold_some_out_is_refused(count, few, tmp_path):
    write_classes(tmp_path / "data", {"a": count, "b": 5})
    with pytest.raises(InputError, match=rf"class 'a' has {few}, expected at least 3 to cut"):
        load_folder(tmp_path / "data")

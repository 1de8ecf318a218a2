"""Files of a folder that are left out are counted or refused."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from robustkd.core.errors import InputError
from robustkd.data import Reading, load_folder
from tests.data.images.image_files import write_classes, write_splits
from tests.data.sources.folders import SPLITS, refused


def test_ignored_files_are_counted_by_kind(tmp_path):
    counts = {"dark": 4, "light": 4}
    write_splits(tmp_path, {"train": counts, "val": counts, "test": counts})
    (tmp_path / "notes").mkdir()
    for name in ("a.txt", "b.TXT", "c.avif", "README", "d.\u202etxt", "e." + "x" * 99):
        (tmp_path / "train" / "dark" / name).write_text("no image")
    (tmp_path / "val" / "light" / "f.txt").write_text("no image")
    found = load_folder(tmp_path, Reading())
    assert found.skipped == {
        ".txt": 3,
        ".avif": 1,
        "files without extension": 1,
        "others": 2,
        "folders": 1,
    }


def test_images_beside_the_class_folders_are_counted(tmp_path):
    counts = {"dark": 4, "light": 4}
    write_splits(tmp_path, {"train": counts, "val": counts, "test": counts})
    for place in ("", "train", "train", "val", "test"):
        name = f"{len(list((tmp_path / place).iterdir()))}.png"
        shutil.copy(tmp_path / "val" / "dark" / "000.png", tmp_path / place / name)
    found = load_folder(tmp_path, Reading())
    assert found.skipped == {"images beside the class folders": 5}
    assert load_folder(tmp_path / "val").skipped == {"images beside the class folders": 1}


@pytest.mark.parametrize("extension", ["gif", "jfif", "jpe", "pnm"])
def test_images_of_less_usual_extensions_are_read(extension, tmp_path):
    write_classes(tmp_path, {"dark": 12, "light": 12})
    kind = {"gif": "GIF", "pnm": "PPM"}.get(extension, "JPEG")
    for path in sorted((tmp_path / "dark").iterdir())[:10]:
        Image.open(path).save(path.with_suffix(f".{extension}"), kind)
        path.unlink()
    found = load_folder(tmp_path, Reading())
    assert sum(found.size(split) for split in SPLITS) == 24
    batches = [batch for split in SPLITS for batch in found.batches(split, batch_size=8)]
    assert sum(len(batch.labels) for batch in batches) == 24
    assert not any(found.undecodable(split) for split in SPLITS)


def test_class_folders_with_a_dot_before_the_name_are_counted(tmp_path):
    counts = {"dark": 4, "light": 4, ".net": 4}
    write_splits(tmp_path, {"train": counts, "val": counts, "test": counts})
    (tmp_path / ".cache" / "empty").mkdir(parents=True)
    (tmp_path / "train" / ".link").symlink_to(tmp_path / "train" / "dark")
    found = load_folder(tmp_path)
    assert found.classes == ("dark", "light")
    assert found.skipped == {"folders of images with a dot before the name": 3}
    below = load_folder(tmp_path / "val")
    assert below.skipped == {"folders of images with a dot before the name": 1}


def test_images_beside_the_splits_are_refused(tmp_path):
    counts = {"dark": 4, "light": 4}
    write_splits(tmp_path, {"train": counts, "test": counts})
    write_classes(tmp_path, {"bus": 3})
    refused(
        tmp_path,
        f"{tmp_path} has class folders in train, and images in bus next to it; expected either "
        "train/CLASS/ or CLASS/ with images: move one of them away",
    )


@pytest.mark.parametrize(
    ("splits", "other", "free"),
    [
        (["train", "test"], "eval/light", "val"),
        (["train"], "eval/light", "val or test"),
        (["train", "val", "test"], "eval/light", ""),
        (["train"], "car/vw", ""),
        (["train"], "eval/a/b/c", ""),
    ],
)
def test_images_deeper_in_a_folder_beside_the_splits_are_refused(splits, other, free, tmp_path):
    """They may be those of a split with another name, or ``train`` may be the name of a class."""
    write_splits(tmp_path, {split: {"dark": 4, "light": 4} for split in splits})
    write_classes(tmp_path / other, {".": 1})
    name = other.split("/")[0]
    rename = f", or rename {name} to {free} if it is that split" if free else ""
    refused(
        tmp_path,
        f"{tmp_path} has class folders in train, and images in {name} next to it; expected either "
        f"train/CLASS/ or CLASS/ with images: move one of them away{rename}",
    )


def test_folders_without_images_beside_the_splits_are_counted(tmp_path):
    write_splits(tmp_path, {"train": {"dark": 12, "light": 12}})
    (tmp_path / "notes" / "deeper").mkdir(parents=True)
    (tmp_path / "notes" / "deeper" / "a.txt").write_text("no image")
    (tmp_path / "notes" / ".hidden").mkdir()
    shutil.copy(tmp_path / "train" / "dark" / "000.png", tmp_path / "notes" / ".hidden")
    # Links that lead elsewhere make no difference, as those of a virtual environment.
    (tmp_path / "notes" / "deeper" / "link").symlink_to(tmp_path.parent)
    assert load_folder(tmp_path).skipped == {"folders": 1}


def test_an_image_is_sought_among_some_names_only(tmp_path, monkeypatch):
    monkeypatch.setattr("robustkd.data.images.scan._MOST_SOUGHT", 10)
    write_splits(tmp_path, {"train": {"dark": 12, "light": 12}})
    (tmp_path / "notes" / "a").mkdir(parents=True)
    for number in range(8):
        (tmp_path / "notes" / f"{number}.txt").touch()
    shutil.copy(tmp_path / "train" / "dark" / "000.png", tmp_path / "notes" / "a")
    with pytest.raises(InputError, match="images in notes next to it"):
        load_folder(tmp_path)
    (tmp_path / "notes" / "8.txt").touch()
    assert load_folder(tmp_path).skipped == {"folders": 1}

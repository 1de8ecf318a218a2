"""Folders of images: torchvision's classes and order, splits given or cut, refusals by text."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from robustkd.core.errors import InputError
from robustkd.data import Reading, load_folder
from robustkd.data.images.listing import Folder, list_files
from robustkd.data.images.scan import EXTENSIONS, folder_names, scan
from tests.data.images.image_files import write_classes, write_splits
from tests.data.sources.folders import SPLITS, names, refused


@pytest.mark.parametrize("inner", ["", "{}", "data/{}"])
def test_a_folder_one_level_too_high_is_refused(inner, tmp_path):
    for split in ("test_set", "training_set"):
        folder = tmp_path / split / inner.format(split)
        write_classes(folder, {"cats": 11, "dogs": 11})
    refused(
        tmp_path,
        f"{tmp_path} looks one level too high: test_set, training_set have no images of "
        "their own, but the same folders cats, dogs; expected train/CLASS/ or CLASS/ with images: "
        "give a folder in it, rename its folders to train and test, or name the classes with "
        "--class-names if it is right",
    )
    asked = Reading(classes=("test_set", "training_set"))
    assert load_folder(tmp_path, asked).classes == ("test_set", "training_set")


@pytest.mark.parametrize(
    "places",
    [
        ("cat/2019", "cat/2020", "dog/2020", "dog/2021"),
        ("cat/images", "dog/images"),
        ("cat", "cat/a", "cat/b", "dog/a", "dog/b"),
        ("cat/a", "cat/b", "dog"),
        # Folders of splits leave no doubt about the level.
        ("train/cat/a", "train/cat/b", "train/dog/a", "train/dog/b"),
    ],
)
def test_images_deeper_in_class_folders_are_read(places, tmp_path):
    for number, place in enumerate(places):
        write_classes(tmp_path / place, {".": 11}, seed=100 * number)
    assert load_folder(tmp_path).classes == ("cat", "dog")


def test_classes_order_and_labels_are_those_of_image_folder(tmp_path):
    classes = {"b": 2, "B": 3, "a b": 1, "é": 2, "10": 2, "9": 1}
    write_classes(tmp_path, classes)
    # Folders below a class, whose order by characters is not that by parts.
    write_classes(tmp_path / "b", {"x": 2, "x-y": 1, "x!": 1})
    (tmp_path / "b" / "x" / "UPPER.PNG").write_bytes((tmp_path / "b" / "000.png").read_bytes())
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b" / "._000.png").write_text("what one system leaves on others")
    expected = [
        (path, label)
        for path, label in ImageFolder(tmp_path, allow_empty=True).samples
        if "._" not in path
    ]
    found = scan(tmp_path, "", folder_names(tmp_path))
    samples = [(str(tmp_path / found.name(row)), k) for row, k in enumerate(found.labels.tolist())]
    assert sorted(samples) == sorted((path, label - 1) for path, label in expected)
    assert [label for _, label in samples] == sorted(label for _, label in samples)
    own = [path for path, label in samples if label == 3]
    parts = [os.path.split(path) for path in own]
    assert parts == sorted(parts, key=lambda part: (part[0].split(os.sep), part[1]))
    with found.open(3) as file:
        assert file.read() == Path(samples[3][0]).read_bytes()


def test_extensions_are_at_least_those_of_image_folder():
    assert set(EXTENSIONS) > set(IMG_EXTENSIONS)


def test_names_of_other_encodings_are_kept(tmp_path):
    odd = os.fsdecode(b"caf\xe9.png")
    listing = list_files(tmp_path, [Folder("", [odd, "b.png"], [0, 1])], classes=2)
    assert [listing.name(row) for row in range(2)] == [odd, "b.png"]


def test_a_class_may_be_called_train(tmp_path):
    data = load_folder(write_classes(tmp_path, {"car": 5, "plane": 5, "train": 5}))
    assert data.classes == ("car", "plane", "train")


def tiny(root: Path) -> Path:
    """Two classes in the form of Tiny-ImageNet."""
    lines = []
    for k, name in enumerate(("n02", "n01")):
        write_classes(root / "train" / name, {"images": 10}, seed=10 * k)
        (root / "train" / name / f"{name}_boxes.txt").touch()
        write_classes(root / "val", {"images" if k == 0 else "more": 2}, seed=50 + 10 * k)
        lines += [f"val_{k}.JPEG\t{name}\t0\t0\t9\t9"]
    for k in range(2):
        made = root / "val" / ("images", "more")[k] / "000.png"
        made.rename(root / "val" / "images" / f"val_{k}.JPEG")
    (root / "val" / "images" / "001.png").unlink()
    (root / "val" / "more" / "001.png").unlink()
    (root / "val" / "more").rmdir()
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines))
    (root / "test" / "images").mkdir(parents=True)
    (root / "test" / "images" / "test_0.JPEG").touch()
    return root


def test_the_layout_of_tiny_imagenet_is_recognised(tmp_path):
    data = load_folder(tiny(tmp_path))
    assert data.classes == ("n01", "n02")
    assert [data.size(split) for split in SPLITS] == [18, 2, 2]
    assert names(data, "test") == ["val/images/val_0.JPEG", "val/images/val_1.JPEG"]
    assert data.parts["test"].labels.tolist() == [1, 0]


def test_annotations_that_name_no_class_are_refused(tmp_path):
    table = tiny(tmp_path) / "val" / "val_annotations.txt"
    table.write_text("val_0.JPEG\tn02\nval_1.JPEG\tn03")
    refused(
        tmp_path,
        f"{table} gives 'val_1.JPEG' the class 'n03', expected one of the folders in train; "
        "correct it",
    )


def without_its_file(path: Path) -> None:
    path.unlink()


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def with_a_file_for_its_folder(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_text("")


@pytest.mark.parametrize(
    ("change", "row", "reason"),
    [
        (without_its_file, 2, "No such file or directory"),
        (as_folder, 2, "it is not a regular file"),
        (as_fifo, 2, "it is not a regular file"),
        (with_a_file_for_its_folder, 0, "Not a directory"),
    ],
)
def test_files_that_change_after_the_scan_are_named(tmp_path, change, row, reason):
    root = write_splits(tmp_path / "mine", {"train": {"a": 9, "b": 9}})
    data = load_folder(root, Reading(streaming=True, workers=0))
    path = names(data, "train")[2]
    change(root / path)
    message = (
        f"mine train: 1 of 14 images cannot be decoded, the last {names(data, 'train')[row]} "
        f"({reason}); expected at most 1%: replace or remove them"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        list(data.batches("train", batch_size=4))


def test_files_of_the_user_are_read_up_to_a_limit(tmp_path):
    folder = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    endless = Path("/dev/zero")
    use = "use the split.json of a run"
    refused(folder, f"{endless} cannot be read as a split (it is too large); {use}", split=endless)
    refused(
        folder, f"{endless} cannot be read as text (it is too large); correct it", classes=endless
    )

"""Folders of images: torchvision's classes and order, splits given or cut, refusals by text."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from robustkd.core.errors import InputError, UsageError
from robustkd.core.types import DataSource, Split
from robustkd.data import CropFlip, Pictures, Reading, ZoomFlip, load_folder, split_text
from robustkd.data.images.class_names import _FORM
from robustkd.data.images.listing import Folder, list_files
from robustkd.data.images.scan import EXTENSIONS, folder_names, scan
from tests.data.images.image_files import picture, write_classes, write_splits

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def names(data: Pictures, split: Split) -> list[str]:
    return [data.parts[split].name(row) for row in range(data.size(split))]


def written(data: Pictures) -> dict[str, object]:
    return json.loads("".join(split_text(data)))


def refused(path: Path, message: str, **reading: object) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_folder(path, Reading(**reading))


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


def test_classes_in_the_order_of_a_file(tmp_path):
    folder = write_classes(tmp_path / "data", {"a": 3, "b": 4, "c": 5})
    order = tmp_path / "classes.txt"
    order.write_text("c\na\nb\n")
    data = load_folder(folder, Reading(classes=order))
    assert data.classes == ("c", "a", "b")
    assert np.bincount(data.parts["train"].labels).tolist() == [3, 1, 2]
    assert names(data, "train")[0].startswith("c/")
    same = Reading(classes=str(order))
    assert (same, hash(same)) == (Reading(classes=order), hash(Reading(classes=order)))
    assert load_folder(folder, same).classes == ("c", "a", "b")
    assert load_folder(folder, Reading(classes=["c", "a", "b"])).classes == ("c", "a", "b")
    # Some editors write a byte order mark, CRLF and empty lines at the end.
    order.write_text("c\r\na\r\nb\r\n\r\n  \r\n", encoding="utf-8-sig")
    assert load_folder(folder, Reading(classes=order)).classes == ("c", "a", "b")
    order.write_text("c\na\n../b\n")
    refused(folder, f"{order} lacks the class 'b' that the folder has; add it", classes=order)
    order.write_text("c\na\nb\nc")
    refused(folder, f"{order} names the class 'c' twice; remove one", classes=order)
    order.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as text"):
        load_folder(folder, Reading(classes=order))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "".join(f"{i}\n" for i in range(200_000)) + "0\n",
            "names the class '0' twice; remove one",
        ),
        ("x" * 1_500_000, f"lacks the class 'a', 'b' that the folder has; add it: {_FORM}"),
        (
            f"1{' ' * 1_500_000}",
            f"lacks the class 'a', 'b' that the folder has; add it: {_FORM}",
        ),
    ],
    ids=["many lines", "one line", "spaces"],
)
def test_a_large_file_of_classes_is_refused_at_once(content, message, tmp_path):
    folder = write_classes(tmp_path / "data", {"a": 3, "b": 3})
    order = tmp_path / "classes.txt"
    order.write_text(content)
    started = time.perf_counter()
    refused(folder, f"{order} {message}", classes=order)
    assert time.perf_counter() - started < 10


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


def test_names_that_no_report_can_show_are_refused(tmp_path):
    counts = {"a": 3, "b": 3}
    long = write_classes(tmp_path / ("d" * 121), counts)
    refused(
        long,
        f"{'d' * 121} is not a valid name for results; expected at most 120 characters: rename "
        "the folder",
    )
    folder = write_classes(tmp_path / "data", {**counts, "c" * 121: 3})
    refused(
        folder,
        f"{folder}: the name of the folder '{'c' * 121}' has 121 characters; expected at most "
        "120 characters: rename it",
    )


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


# Everything in the folder is accounted for.


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


# A teacher of more classes than the folder.


@pytest.mark.parametrize(
    ("lines", "names", "outputs", "of"),
    [
        (["bee", "ant"], ("bee", "ant"), (), None),
        (["cat", "bee", "dog", "ant", "eel"], ("bee", "ant"), (1, 3), 5),
        (["309 bee", "310: ant"], ("bee", "ant"), (309, 310), None),
        (["310,ant", "309\tbee"], ("bee", "ant"), (309, 310), None),
    ],
)
def test_a_list_of_classes_may_choose_outputs_of_the_teacher(lines, names, outputs, of, tmp_path):
    root = write_classes(tmp_path / "insects", {"ant": 6, "bee": 6})
    (tmp_path / "names.txt").write_text("\n".join(lines))
    found = load_folder(root, Reading(classes=tmp_path / "names.txt"))
    assert (found.classes, found.outputs, found.outputs_of) == (names, outputs, of)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1 bee", "1 ant"], "has the output '1' twice; remove one"),
        (["1 bee", "2 bee"], "has the class 'bee' twice; remove one"),
        (["cat", "bee", "dog"], "lacks the class 'ant' that the folder has; add it"),
        (["1 bee", "ant"], "lacks the class 'bee' that the folder has; add it"),
    ],
)
def test_a_wrong_list_of_classes_is_refused(lines, message, tmp_path):
    root = write_classes(tmp_path / "insects", {"ant": 6, "bee": 6})
    (tmp_path / "names.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        load_folder(root, Reading(classes=tmp_path / "names.txt"))


ONE, TWO = "caf\u00e9", "cafe\u0301"
"""One name in the forms of most systems and of macOS."""


@pytest.mark.parametrize(("first", "second"), [(ONE, TWO), (TWO, ONE)])
def test_names_that_look_the_same_are_the_same_class_in_every_split(first, second, tmp_path):
    folders = {"train": (first, "tea"), "val": (second, "tea"), "test": (first, "tea")}
    write_splits(tmp_path, {split: dict.fromkeys(names, 4) for split, names in folders.items()})
    found = load_folder(tmp_path)
    assert found.classes == (first, "tea")
    (batch,) = found.batches("validation", batch_size=10)
    assert batch.labels.tolist() == [0] * 4 + [1] * 4
    assert load_folder(tmp_path, Reading(classes=("tea", second))).classes == ("tea", first)


@pytest.mark.parametrize("part", ["", "train", "test"])
def test_two_folders_whose_names_look_the_same_are_refused(part, tmp_path):
    if part:
        write_splits(tmp_path, {"train": {ONE: 4, "tea": 4}, "test": {ONE: 4, "tea": 4}})
    write_classes(tmp_path / part, {ONE: 4, TWO: 4, "tea": 4})
    refused(
        tmp_path,
        f"{tmp_path / part}: the names of the folders 'cafe\\u0301' and 'caf\\xe9' differ only in "
        "how Unicode writes their accents, so they are the same class; merge the folders",
    )


@pytest.mark.parametrize(
    ("lines", "outputs"),
    [(["tea", TWO], ()), (["bread", TWO, "tea"], (1, 2)), ([f"7 {TWO}", "9 tea"], (7, 9))],
)
def test_a_file_of_class_names_may_use_the_other_form(lines, outputs, tmp_path):
    write_classes(tmp_path / "images", {ONE: 12, "tea": 12})
    names = tmp_path / "names.txt"
    names.write_text("\n".join(lines))
    found = load_folder(tmp_path / "images", Reading(classes=names))
    assert set(found.classes) == {ONE, "tea"}
    assert found.outputs == outputs


def test_a_file_of_class_names_may_not_name_a_class_in_both_forms(tmp_path):
    write_classes(tmp_path / "images", {ONE: 12, "tea": 12})
    names = tmp_path / "names.txt"
    for lines in ([ONE, TWO, "tea"], [f"7 {ONE}", f"8 {TWO}", "9 tea"]):
        names.write_text("\n".join(lines))
        with pytest.raises(InputError, match=f"the class '{ONE}' twice; remove one"):
            load_folder(tmp_path / "images", Reading(classes=names))


def test_a_folder_with_other_classes_than_the_model_is_named(tmp_path):
    """The folder can be changed, the model cannot."""
    write_splits(tmp_path, {"train": {"ant": 12, "bee": 12}})
    use = "or use the data that the model was trained for"
    folder = tmp_path / "train"
    refused(
        tmp_path,
        f"{folder} has the class 'bee' that the model lacks; remove it, {use}",
        classes=("ant",),
    )
    refused(
        tmp_path,
        f"{folder} lacks the class 'cat' that the model has; add it, {use}",
        classes=("bee", "cat", "ant"),
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

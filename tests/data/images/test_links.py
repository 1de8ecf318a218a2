"""Links in data folders, and in paths of teachers, do not lead out of the given folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from robustkd import data, models
from robustkd.core.errors import InputError
from robustkd.core.trees import open_named
from robustkd.data import Reading, load_folder
from robustkd.models import Spec, build
from robustkd.teacher.untrusted import quarantine
from tests.data.images.image_files import write_classes, write_splits
from tests.data.sources import official_files

COPY = "; replace it by a copy of what is meant"


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert str(caught.value).isprintable()
    return str(caught.value)


def by_link(path: Path, elsewhere: Path) -> None:
    """Move a file or folder to another place and leave a link to it."""
    elsewhere.parent.mkdir(exist_ok=True)
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    "part", ["val/images", "val/val_annotations.txt", "val", "train", "train/n00000001/images"]
)
def test_a_part_of_tiny_imagenet_that_is_a_link_is_refused(part, tmp_path):
    root = official_files.write_tiny(tmp_path / "data") / "tiny-imagenet-200"
    by_link(root / part, tmp_path / "elsewhere" / "part")
    for load in (
        lambda: load_folder(root),
        lambda: data.open_source("tiny-imagenet", root=tmp_path / "data"),
    ):
        text = refused(load)
        assert str(root / part) in text
        assert "link" in text


GTSRB = (
    "GTSRB",
    "GTSRB/Training",
    "GTSRB/Training/00003",
    "GTSRB/Training/00003/00000_0.ppm",
    "GTSRB/Final_Test",
    "GTSRB/Final_Test/Images",
    "GTSRB/Final_Test/Images/00007.ppm",
    "GT-final_test.csv",
)


@pytest.mark.parametrize("part", GTSRB)
def test_a_part_of_gtsrb_that_is_a_link_is_refused(part, tmp_path):
    root = official_files.write_gtsrb(tmp_path / "data")
    by_link(root / "gtsrb" / part, tmp_path / "elsewhere" / Path(part).name)
    text = refused(lambda: data.open_source("gtsrb", root=root))
    assert text.startswith(str(root / "gtsrb" / part))
    assert " link" in text


@pytest.mark.parametrize("part", ["jpg", "jpg/image_00007.jpg", "setid.mat", "imagelabels.mat"])
def test_a_part_of_flowers_that_is_a_link_is_refused(part, tmp_path, monkeypatch):
    root = official_files.write_flowers(tmp_path / "data", monkeypatch)
    by_link(root / "flowers-102" / part, tmp_path / "elsewhere" / Path(part).name)
    text = refused(lambda: data.open_source("flowers-102", root=root))
    assert text.startswith(str(root / "flowers-102" / part))
    assert " link" in text


@pytest.mark.parametrize("name", ["gtsrb", "flowers-102", "tiny-imagenet"])
def test_the_folder_itself_may_be_a_link_of_the_user_s(name, tmp_path, monkeypatch):
    write = {
        "gtsrb": official_files.write_gtsrb,
        "flowers-102": lambda root: official_files.write_flowers(root, monkeypatch),
        "tiny-imagenet": official_files.write_tiny,
    }[name]
    write(tmp_path / "large")
    (found,) = (tmp_path / "large").iterdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / found.name).symlink_to(found)
    source = data.open_source(name, root=tmp_path / "data")
    assert len(next(source.batches("test", batch_size=2)).labels) == 2


def test_a_file_of_fashion_mnist_that_leaves_its_folder_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "train-images-idx3-ubyte"
    (tmp_path / "elsewhere").write_bytes(b"\0\0\x08\x01\0\0\0\x01x")
    path.symlink_to(tmp_path / "elsewhere")
    assert "is a symbolic link that leaves its folder" in refused(lambda: data.read_idx(path))


# What changes between the scan and the reading.


def swap_file(root: Path, path: str, secret: Path) -> None:
    (root / path).unlink()
    (root / path).symlink_to(secret / Path(path).name)


def swap_folder(root: Path, path: str, secret: Path) -> None:
    shutil.rmtree((root / path).parent)
    (root / path).parent.symlink_to(secret)


def swap_class_file_for_a_chain(root: Path, path: str, secret: Path) -> None:
    (root / "chain").symlink_to(secret)
    (root / path).unlink()
    (root / path).symlink_to(root / "chain" / Path(path).name)


@pytest.mark.parametrize("swap", [swap_file, swap_folder, swap_class_file_for_a_chain])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_replaced_by_a_link_after_the_scan_is_not_followed(swap, workers, tmp_path):
    root = write_splits(tmp_path / "mine", {"train": {"a": 9, "b": 9}})
    secret = write_classes(tmp_path / "secret", {"a": 9}) / "a"
    source = load_folder(root, Reading(streaming=True, workers=workers))
    part = source.parts["train"]
    swap(root, part.name(2), secret)
    text = refused(lambda: list(source.batches("train", batch_size=4)))
    assert "(a link that leaves the folder)" in text


def test_links_within_the_folder_are_followed_even_through_others(tmp_path):
    root = write_splits(tmp_path / "mine", {"train": {"a": 9, "b": 9}})
    (root / "train" / "a" / "z.png").symlink_to("y.png")
    (root / "train" / "a" / "y.png").symlink_to(root / "train" / "b" / "000.png")
    source = load_folder(root, Reading(streaming=True, workers=0))
    assert sum(source.size(split) for split in ("train", "validation", "test")) == 20
    for split in ("train", "validation", "test"):
        list(source.batches(split, batch_size=4))
        assert not source.undecodable(split)


# The way to a teacher.


@pytest.fixture
def teacher(tmp_path) -> Path:
    path = tmp_path / "private" / "teacher.safetensors"
    path.parent.mkdir()
    models.save(build(Spec("wrn-10-1", 3, (3, 8, 8)), seed=0), path)
    return path


READERS = (quarantine.read, models.load)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("link", ["pack/models", "pack/deep/er", "pack/teacher.safetensors"])
def test_a_link_in_a_folder_from_elsewhere_does_not_leave_it(link, read, teacher, tmp_path):
    place = tmp_path / link
    place.parent.mkdir(parents=True)
    is_file = place.suffix != ""
    place.symlink_to(teacher if is_file else teacher.parent)
    path = place if is_file else place / teacher.name
    text = refused(lambda: read(path))
    assert f"{place} is a symbolic link that leaves its folder; give the " in text


@pytest.mark.parametrize("read", READERS)
def test_links_of_the_user_and_within_a_folder_are_followed(read, teacher, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "teachers").symlink_to(teacher.parent)
    (teacher.parent / "latest.safetensors").symlink_to(teacher.name)
    read(Path("teachers") / teacher.name)
    read(Path("../here/teachers/latest.safetensors"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".cache").mkdir(parents=True)
    (tmp_path / "home" / ".cache" / "hub").symlink_to(teacher.parent)
    read(tmp_path / "home" / ".cache" / "hub" / teacher.name)


def test_parent_folders_of_links_are_those_of_the_system(teacher, tmp_path, monkeypatch):
    """`link/..` is the folder above the link's target, not the one that holds the link."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(teacher.parent)
    descriptor = open_named(Path("link/../private") / teacher.name)
    assert os.fstat(descriptor).st_ino == teacher.stat().st_ino
    os.close(descriptor)


def test_a_link_that_appears_after_the_check_is_not_followed(teacher, tmp_path, monkeypatch):
    place = tmp_path / "pack" / "teacher.safetensors"
    place.parent.mkdir()
    shutil.copy(teacher, place)

    def swap(path: Path) -> None:
        shutil.rmtree(place.parent)
        place.parent.symlink_to(teacher.parent)

    monkeypatch.setattr("robustkd.core.trees._check_links", swap)
    assert re.search(r"cannot be read: Not a directory", refused(lambda: quarantine.read(place)))

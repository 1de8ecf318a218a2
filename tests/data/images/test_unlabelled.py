"""Folders of triggered images, with and without class folders."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from robustkd.core.errors import InputError
from robustkd.data import Reading
from robustkd.data.images.unlabelled import read_images

GREY = Reading(channels=1)


def write(path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)


def test_images_of_the_folder_and_of_class_folders_are_read(tmp_path):
    write(tmp_path / "a.png", 1)
    write(tmp_path / "cat" / "b.png", 2)
    write(tmp_path / "dog" / "c.png", 3)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    found = read_images(tmp_path, size=4, reading=GREY)
    assert found.images.shape == (3, 1, 4, 4)
    assert (found.images[:, 0, 0, 0].tolist(), found.damaged) == ([1, 2, 3], 1)
    found = read_images(tmp_path, size=4, reading=GREY, without="dog")
    assert found.images[:, 0, 0, 0].tolist() == [1, 2]
    assert read_images(tmp_path, size=8, reading=GREY).images.shape == (3, 1, 8, 8)


def test_images_have_the_class_of_their_folder(tmp_path):
    write(tmp_path / "a.png", 1)
    write(tmp_path / "cat" / "deeper" / "b.png", 2)
    write(tmp_path / "dog" / "c.png", 3)
    (tmp_path / "cat" / "a.png").write_bytes(b"\x89PNG")  # no label is kept for it
    found = read_images(tmp_path, size=4, reading=GREY, classes=("dog", "cat"))
    assert found.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert found.labels.tolist() == [-1, 1, 0]
    message = (
        "has an image 'a.png' that is in no folder of a class; the next class of an image needs"
    )
    with pytest.raises(InputError, match=message):
        read_images(tmp_path, size=4, reading=GREY, classes=("dog", "cat"), labelled=True)
    (tmp_path / "a.png").unlink()
    found = read_images(tmp_path, size=4, reading=GREY, classes=("dog", "cat"), labelled=True)
    assert found.labels.tolist() == [1, 0]


def test_images_that_need_a_class_are_in_a_folder_that_is_named_by_one(tmp_path):
    write(tmp_path / "test" / "cat" / "b.png", 2)
    with pytest.raises(InputError, match=r"an image 'test/cat/b\.png' that is in no folder of a"):
        read_images(tmp_path, size=4, reading=GREY, classes=("dog", "cat"), labelled=True)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no image that can be read; expected at least one"):
        read_images(tmp_path, size=4, reading=GREY)
    with pytest.raises(InputError, match="is not a folder; expected one with triggered images"):
        read_images(tmp_path / "none", size=4, reading=GREY)


def test_a_folder_with_images_of_the_target_only_is_refused(tmp_path):
    write(tmp_path / "dog" / "c.png", 3)
    message = r"has no images of other classes than 'dog', the target, whose images are left out"
    with pytest.raises(InputError, match=message):
        read_images(tmp_path, size=4, reading=GREY, without="dog")


def test_links_out_of_the_folder_are_refused(tmp_path):
    write(tmp_path / "outside.png", 9)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(InputError):
        read_images(tmp_path / "in", size=4, reading=GREY)

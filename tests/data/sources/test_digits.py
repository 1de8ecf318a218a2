"""The bundled digits: complete, without duplicates, and with a fixed split."""

from __future__ import annotations

import gzip
from types import SimpleNamespace

import pytest
import torch
from sklearn import datasets

from robustkd.core.errors import InputError
from robustkd.core.types import DataSource
from robustkd.data import CropFlip, InMemory
from robustkd.data.sources import digits as digits_module
from robustkd.data.sources.digits import load_digits

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def digits() -> InMemory:
    return load_digits()


def test_shapes_and_sizes(digits):
    assert isinstance(digits, DataSource)
    assert digits.name == "digits"
    assert digits.classes == tuple("0123456789")
    assert digits.image_shape == (1, 16, 16)
    assert [digits.size(split) for split in SPLITS] == [1200, 240, 357]
    assert digits.augmentation == CropFlip(pad=1, flip=False)


def test_the_splits_share_no_image_and_lose_none(digits):
    rows = [image.numpy().tobytes() for s in SPLITS for image in getattr(digits, s).images]
    assert len(rows) == len(set(rows)) == 1797


def test_every_split_has_the_classes_in_equal_shares(digits):
    total = torch.from_numpy(datasets.load_digits().target).bincount()
    for split in SPLITS:
        share = getattr(digits, split).labels.bincount() / total
        assert (share - digits.size(split) / 1797).abs().max() < 0.012


def test_digits_are_the_original_images_with_their_classes(digits):
    bundle = datasets.load_digits()
    originals = torch.from_numpy(bundle.images).float().flatten(1) / 16
    held = digits.test
    halved = torch.nn.functional.avg_pool2d(held.images.float() / 255, 2).flatten(1)
    nearest = torch.cdist(halved, originals).argmin(1)
    assert len(nearest.unique()) == len(nearest)
    assert torch.equal(torch.from_numpy(bundle.target)[nearest], held.labels)
    # 2x2 means of a bicubic enlargement differ a little from the pixel that they came from.
    assert (halved - originals[nearest]).abs().mean() < 0.05
    assert held.images.min() == 0
    assert held.images.max() == 255


def test_the_file_is_read_as_scikit_learn_reads_it():
    bundle = datasets.load_digits()
    rows = digits_module._read_rows()
    assert rows[:, :-1].tobytes() == bundle.data.tobytes()
    assert rows[:, -1].astype(int).tobytes() == bundle.target.tobytes()


def test_a_missing_or_damaged_file_is_refused(monkeypatch, tmp_path):
    place = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(digits_module, "find_spec", lambda _name: place)
    with pytest.raises(InputError, match=r"^datasets/data/digits.csv.gz is missing from scikit-"):
        load_digits()
    file = tmp_path / "datasets/data/digits.csv.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"digits.csv.gz is damaged \("):
        load_digits()
    file.write_bytes(gzip.compress(b"1,2,3\n4,5,6\n"))
    with pytest.raises(InputError, match=r"digits.csv.gz is damaged \(3 columns in place of 65\)"):
        load_digits()


def test_the_split_is_always_the_same(digits):
    again = load_digits()
    for split in SPLITS:
        assert torch.equal(getattr(digits, split).images, getattr(again, split).images)

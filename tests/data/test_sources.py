"""The table of sources; the contract runs over every row that needs no files of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from robustkd import data
from robustkd.core.errors import InputError, UsageError
from robustkd.core.types import DataSource
from tests.data.images.image_files import write_classes
from tests.data.sources import official_files
from tests.data.sources.idx_files import write_fashion

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module", params=data.names())
def source(request, tmp_path_factory) -> Iterator[DataSource]:
    name = request.param
    root = tmp_path_factory.mktemp(name)
    if name == "digits":
        yield data.open_source(name)
    elif name == "fashion-mnist":
        yield data.open_source(name, root=write_fashion(root))
    else:
        with pytest.MonkeyPatch.context() as patch:
            yield data.open_source(name, root=official_files.write(name, root, patch))


@pytest.mark.parametrize("split", SPLITS)
def test_every_source_keeps_the_contract(source, split):
    assert isinstance(source, DataSource)
    assert source.name in data.names()
    generator = torch.Generator().manual_seed(0)
    batches = list(source.batches(split, batch_size=32, shuffle=generator, augment=generator))
    index = torch.cat([batch.rows for batch in batches])
    assert torch.equal(index.sort().values, torch.arange(source.size(split)))
    labels = torch.cat([batch.labels for batch in batches])
    assert set(labels.tolist()) == set(range(len(source.classes)))
    for batch in batches:
        assert batch.images.shape[1:] == source.image_shape
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1


def test_names_are_sorted():
    assert list(data.names()) == sorted({*data.SOURCES, *data.PICTURES})
    assert {"digits", "fashion-mnist", "cifar-10", "gtsrb"} <= set(data.names())


def test_subsets_by_name():
    small = data.load("digits", train=100, validation=20, test=10)
    assert [small.size(split) for split in SPLITS] == [100, 20, 10]
    assert small.test.labels.tolist().count(3) == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "did you mean 'digits'?"),
        ("FashionMNIST", "choose one of these, or give a folder"),
        ("fashion_mnist", "did you mean 'fashion-mnist'?"),
        ("", "choose one of these, or give a folder"),
    ],
)
def test_unknown_names_list_the_known(name, hint):
    message = f"unknown data source {name!r}; expected {', '.join(data.names())}; {hint}"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        data.load(name)
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        data.open_source(name)


def test_a_name_comes_before_a_folder_and_a_path_is_a_folder(tmp_path, monkeypatch):
    write_classes(tmp_path / "digits", {"a": 9, "b": 9})
    write_classes(tmp_path / "mine", {"a": 9, "b": 9})
    monkeypatch.chdir(tmp_path)
    assert data.open_source("digits").classes == tuple("0123456789")
    for path in ("./digits", "mine", str(tmp_path / "digits")):
        assert data.open_source(path).classes == ("a", "b")
    with pytest.raises(InputError, match=r"^none is not a folder; expected one with images$"):
        data.open_source("./none")
    message = r"^root is 'x'; \./digits is the path of the data: leave it out$"
    with pytest.raises(UsageError, match=message):
        data.open_source("./digits", root=Path("x"))


def test_digits_take_no_root(tmp_path):
    message = f"root is {str(tmp_path)!r}; digits come with scikit-learn and take no folder; leave"
    with pytest.raises(UsageError, match=re.escape(message)):
        data.load("digits", root=tmp_path)


def test_a_number_out_of_range_names_the_source():
    with pytest.raises(
        UsageError, match=r"^train is 1201; digits can give from 10 .* to 1200 images"
    ):
        data.load("digits", train=1201)

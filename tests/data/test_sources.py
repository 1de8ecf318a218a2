"""The table of sources; the contract runs over every row that needs no files of its own."""

from __future__ import annotations

import re

import pytest
import torch
from idx_files import write_fashion

from robustkd import data
from robustkd.errors import UsageError
from robustkd.types import DataSource

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module", params=data.names())
def source(request, tmp_path_factory) -> DataSource:
    if request.param == "fashion-mnist":
        return data.load(request.param, root=write_fashion(tmp_path_factory.mktemp("fashion")))
    return data.load(request.param)


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
    assert data.names() == ("digits", "fashion-mnist")


def test_subsets_by_name():
    small = data.load("digits", train=100, validation=20, test=10)
    assert [small.size(split) for split in SPLITS] == [100, 20, 10]
    assert small.test.labels.tolist().count(3) == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "did you mean 'digits'?"),
        ("FashionMNIST", "choose one of these"),
        ("fashion_mnist", "did you mean 'fashion-mnist'?"),
        ("", "choose one of these"),
    ],
)
def test_unknown_names_list_the_known(name, hint):
    message = f"unknown data source {name!r}: expected digits, fashion-mnist; {hint}"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        data.load(name)


def test_digits_take_no_root(tmp_path):
    message = f"root={str(tmp_path)!r}: digits come with scikit-learn and take no folder; leave"
    with pytest.raises(UsageError, match=re.escape(message)):
        data.load("digits", root=tmp_path)


def test_a_number_out_of_range_names_the_source():
    with pytest.raises(UsageError, match=r"^train=1201: digits can give from 10 .* to 1200 images"):
        data.load("digits", train=1201)

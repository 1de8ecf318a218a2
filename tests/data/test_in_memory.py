"""`InMemory`: exact pixels, complete passes, stratified subsets, and error messages."""

from __future__ import annotations

import re

import pytest
import torch

from robustkd.core.errors import InputError, UsageError
from robustkd.core.types import DataSource
from robustkd.data import CropFlip, InMemory, Labelled


def labelled(n: int, shape: tuple[int, int, int] = (3, 4, 5), classes: int = 4) -> Labelled:
    images = torch.randint(256, (n, *shape), generator=torch.Generator().manual_seed(n))
    return Labelled(images.to(torch.uint8), torch.arange(n) % classes)


def source(**changes: object) -> InMemory:
    parts = {"train": labelled(22), "validation": labelled(8), "test": labelled(9)}
    return InMemory(**{"name": "toy", "classes": ("a", "b", "c", "d"), **parts, **changes})


def test_is_a_data_source():
    data = source()
    assert isinstance(data, DataSource)
    assert data.image_shape == (3, 4, 5)
    assert [data.size(split) for split in ("train", "validation", "test")] == [22, 8, 9]
    assert repr(data) == (
        "InMemory(name='toy', classes=('a', 'b', 'c', 'd'), "
        "augmentation=CropFlip(pad=0, flip=False))"
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_the_bytes_over_255_in_order(channels):
    data = source(**{s: labelled(22, (channels, 4, 5)) for s in ("train", "validation", "test")})
    batches = list(data.batches("train", batch_size=5))
    assert [len(batch.labels) for batch in batches] == [5, 5, 5, 5, 2]
    assert torch.equal(torch.cat([batch.rows for batch in batches]), torch.arange(22))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), data.train.labels)
    images = torch.cat([batch.images for batch in batches])
    assert torch.equal(images, data.train.images.float() / 255)
    for batch in batches:
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_a_shuffled_pass_yields_every_image_once_with_its_label():
    data = source()

    def one_pass(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shuffle = torch.Generator().manual_seed(seed)
        batches = data.batches("train", batch_size=4, shuffle=shuffle)
        return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))

    images, labels, index = one_pass(0)
    assert sorted(index.tolist()) == list(range(22))
    assert index.tolist() != list(range(22))
    assert torch.equal(labels, data.train.labels[index])
    assert torch.equal(images, data.train.images[index].float() / 255)
    assert torch.equal(index, one_pass(0)[2])
    assert not torch.equal(index, one_pass(1)[2])


def test_one_generator_gives_a_new_order_in_every_pass():
    shuffle = torch.Generator().manual_seed(0)
    passes = [next(source().batches("train", batch_size=22, shuffle=shuffle)) for _ in range(2)]
    assert not torch.equal(passes[0].rows, passes[1].rows)


def test_augmentation_is_applied_only_on_request_and_never_to_stored_images():
    data = source(augmentation=lambda images, _: 1 - images)
    before = data.train.images.clone()
    plain = next(data.batches("train", batch_size=22)).images
    augmented = next(data.batches("train", batch_size=22, augment=torch.Generator())).images
    assert torch.equal(augmented, 1 - plain)
    cropped = source(augmentation=CropFlip(pad=2, flip=True))
    list(cropped.batches("train", batch_size=22, augment=torch.Generator()))
    assert torch.equal(cropped.train.images, before)


def test_writing_to_a_batch_does_not_change_the_source():
    data = source()
    before = data.train.images.clone()
    next(data.batches("train", batch_size=22)).images.zero_()
    assert torch.equal(data.train.images, before)


def test_batches_reach_the_device_asked_for():
    batch = next(source().batches("train", batch_size=4, device="meta"))
    assert {tensor.device.type for tensor in batch} == {"meta"}


def test_subsets_are_stratified_nested_and_repeatable():
    data = source(train=labelled(200))
    small, large = data.subset(train=20), data.subset(train=80)
    assert small.train.labels.bincount().tolist() == [5, 5, 5, 5]
    assert large.train.labels.bincount().tolist() == [20, 20, 20, 20]
    rows = {image.numpy().tobytes() for image in large.train.images}
    assert all(image.numpy().tobytes() in rows for image in small.train.images)
    assert torch.equal(small.train.images, data.subset(train=20).train.images)
    assert not torch.equal(small.train.images, data.subset(train=20, seed=1).train.images)
    assert small.size("validation") == data.size("validation")
    assert [data.subset(validation=4, test=5).size(s) for s in ("validation", "test")] == [4, 5]


def test_a_subset_of_all_is_all_in_order():
    data = source()
    assert torch.equal(data.subset(train=22).train.images, data.train.images)


@pytest.mark.parametrize(("split", "n", "size"), [("train", 23, 22), ("test", 3, 9)])
def test_subsets_out_of_range(split, n, size):
    message = (
        f"{split} is {n}; toy can give from 4 (one of each class) to {size} images; "
        "choose a number in between"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        source().subset(**{split: n})


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_is_refused_at_the_call(batch_size):
    message = f"^batch_size is {batch_size}; expected at least 1; raise it$"
    with pytest.raises(UsageError, match=message):
        source().batches("train", batch_size=batch_size)


FINE = labelled(6)
REFUSED = {
    "floats": (
        Labelled(FINE.images / 255, FINE.labels),
        UsageError,
        "toy test: images are torch.float32 of shape (6, 3, 4, 5), expected torch.uint8 of "
        "N x 1 x H x W or N x 3 x H x W; convert them",
    ),
    "no channel axis": (
        Labelled(FINE.images[:, 0], FINE.labels),
        UsageError,
        "toy test: images are torch.uint8 of shape (6, 4, 5), expected torch.uint8 of "
        "N x 1 x H x W or N x 3 x H x W; convert them",
    ),
    "two channels": (
        Labelled(FINE.images[:, :2], FINE.labels),
        UsageError,
        "toy test: images are torch.uint8 of shape (6, 2, 4, 5), expected torch.uint8 of "
        "N x 1 x H x W or N x 3 x H x W; convert them",
    ),
    "another size": (
        labelled(6, (3, 5, 4)),
        UsageError,
        "toy test: images are (3, 5, 4), expected (3, 4, 5) as in train; give all splits one shape",
    ),
    "small integers": (
        Labelled(FINE.images, FINE.labels.int()),
        UsageError,
        "toy test: labels are torch.int32 of shape (6,), expected torch.int64 of one dimension; "
        "convert them",
    ),
    "one-hot": (
        Labelled(FINE.images, torch.eye(6, dtype=torch.int64)),
        UsageError,
        "toy test: labels are torch.int64 of shape (6, 6), expected torch.int64 of one "
        "dimension; convert them",
    ),
    "too few labels": (
        Labelled(FINE.images, FINE.labels[:5]),
        InputError,
        "toy test: 6 images but 5 labels, expected as many; check that both belong together",
    ),
    "empty": (
        Labelled(FINE.images[:0], FINE.labels[:0]),
        InputError,
        "toy test: no images, expected at least one; check the source",
    ),
    "label too high": (
        Labelled(FINE.images, torch.tensor([0, 1, 2, 3, 4, 0])),
        InputError,
        "toy test: labels reach from 0 to 4, expected 0 to 3; "
        "check that the labels belong to this data set",
    ),
    "label too low": (
        Labelled(FINE.images, FINE.labels - 1),
        InputError,
        "toy test: labels reach from -1 to 2, expected 0 to 3; "
        "check that the labels belong to this data set",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unfit_tensors_are_refused_on_construction(case):
    test, kind, message = REFUSED[case]
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        source(test=test)

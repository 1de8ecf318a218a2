"""`Pictures`: the batches depend on seeds alone; damaged images are left out, named, and few."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from robustkd.core.errors import InputError, UsageError
from robustkd.core.types import Batch, Split
from robustkd.data import InMemory, Pictures, Reading, load_folder
from robustkd.data.images.options import IN_MEMORY_BYTES
from tests.data.images.image_files import write_classes, write_splits

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_passes(data: Pictures | InMemory, **changes: int) -> list[Batch]:
    """Everything that is random, twice, from generators that go on."""
    order, crops = seeded(changes.get("order", 1)), seeded(changes.get("crops", 2))
    return [
        batch
        for _ in range(2)
        for batch in data.batches("train", batch_size=7, shuffle=order, augment=crops)
    ]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(x, y)
        for batches in zip(one, other, strict=True)
        for x, y in zip(*batches, strict=True)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp("images"), {"a": 30, "b": 20})


@pytest.fixture(scope="module")
def expected(folder) -> list[Batch]:
    return two_passes(load_folder(folder, Reading(workers=0, streaming=True)))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("streaming", [True, False])
def test_batches_do_not_depend_on_workers_or_on_streaming(folder, expected, workers, streaming):
    data = load_folder(folder, Reading(workers=workers, streaming=streaming))
    assert data.streamed == streaming
    assert same(two_passes(data), expected)


def test_held_and_collected_images_are_the_streamed_ones(folder, expected):
    data = load_folder(folder)
    assert not data.streamed
    assert same(two_passes(data), expected)
    assert same(two_passes(data.in_memory()), expected)


def test_batches_do_depend_on_the_seeds(folder, expected):
    data = load_folder(folder)
    assert not same(two_passes(data, order=9), expected)
    assert not same(two_passes(data, crops=9), expected)


def test_one_pass_yields_every_image_once_as_floats(folder, expected):
    first = expected[: len(expected) // 2]
    assert [len(batch.labels) for batch in first] == [7, 7, 7, 7, 7, 5]
    assert torch.cat([batch.rows for batch in first]).sort().values.tolist() == list(range(40))
    for batch in first:
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert 0 <= batch.images.min() <= batch.images.max() <= 1


def test_a_pass_does_not_use_the_global_generators(folder):
    data = load_folder(folder, Reading(workers=1, streaming=True))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(data.batches("train", batch_size=16))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_rule_for_streaming():
    just = IN_MEMORY_BYTES // (3 * 64**2)
    assert not Reading().streams(just, 64)
    assert Reading().streams(just + 1, 64)
    assert not Reading(channels=1).streams(3 * just, 64)
    assert not Reading(streaming=False).streams(10**9, 64)
    assert Reading(streaming=True).streams(1, 1)


def test_the_rule_for_workers(monkeypatch):
    monkeypatch.setattr("robustkd.data.images.options.usable_cores", lambda: 2)
    assert [Reading().workers_for(n) for n in (999, 1000)] == [0, 2]
    monkeypatch.setattr("robustkd.data.images.options.usable_cores", lambda: 64)
    assert Reading().workers_for(1000) == 4
    assert Reading(workers=9).workers_for(1) == 9


def test_subsets_are_those_of_the_same_images_in_memory(folder):
    data = load_folder(folder)
    sizes = {"train": 20, "validation": 3, "test": 2}
    small, held = data.subset(**sizes), data.in_memory().subset(**sizes)
    assert [small.size(split) for split in SPLITS] == [20, 3, 2]
    assert same(two_passes(small), two_passes(held))
    message = "train is 1; images0 can give from 2 (one of each class) to 40 images; choose"
    with pytest.raises(UsageError, match=re.escape(message.replace("images0", data.name))):
        data.subset(train=1)


def test_batch_size_is_refused_at_the_call(folder):
    with pytest.raises(UsageError, match=r"^batch_size is 0; expected at least 1; raise it$"):
        load_folder(folder).batches("train", batch_size=0)


@pytest.fixture
def damaged(tmp_path) -> Path:
    """One hundred training images, the third of which is no image."""
    splits = {"train": {"a": 50, "b": 50}, "val": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}}
    root = write_splits(tmp_path / "data", splits, size=8)
    (root / "train" / "a" / "002.png").write_text("hello")
    return root


REASON = "not an image of a known format"


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_left_out_and_named_once(damaged, streaming, workers, caplog):
    data = load_folder(damaged, Reading(streaming=streaming, workers=workers))
    with caplog.at_level(logging.WARNING, logger="robustkd"):
        passes = [list(data.batches("train", batch_size=3)) for _ in range(2)]
    assert same(*passes)
    assert data.size("train") == 100
    assert torch.cat([batch.rows for batch in passes[0]]).tolist() == [0, 1, *range(3, 100)]
    assert len(passes[0][0].images) == 2
    assert data.undecodable("train") == {"train/a/002.png": REASON}
    assert caplog.messages == [
        f"train/a/002.png is left out: it cannot be decoded ({REASON})",
    ]
    assert data.in_memory().size("train") == 99


@pytest.mark.parametrize("streaming", [True, False])
def test_a_batch_of_damaged_images_only_is_left_out(damaged, streaming):
    data = load_folder(damaged, Reading(streaming=streaming))
    found = list(data.batches("train", batch_size=1))
    assert len(found) == 99
    assert all(len(batch.labels) == 1 for batch in found)


@pytest.mark.parametrize("streaming", [True, False])
def test_more_than_one_percent_of_damaged_images_is_refused(damaged, streaming):
    (damaged / "train" / "b" / "049.png").write_bytes(b"")
    data = load_folder(damaged, Reading(streaming=streaming))
    message = (
        f"data train: 2 of 100 images cannot be decoded, the last train/b/049.png ({REASON}); "
        "expected at most 1%: replace or remove them"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        list(data.batches("train", batch_size=8))


def test_a_file_that_vanishes_counts_as_damaged(damaged):
    data = load_folder(damaged)
    (damaged / "test" / "a" / "001.png").unlink()
    message = r"1 of 4 images .* test/a/001.png \(No such file or directory\)"
    with pytest.raises(InputError, match=message):
        list(data.batches("test", batch_size=4))


class Deadly:
    """Images of which one kills the process that reads it."""

    labels = np.array([0, 1, 0, 1])

    def open(self, _: int):
        import os

        os._exit(1)

    def name(self, row: int) -> str:
        return str(row)


def test_a_worker_that_dies_is_reported_in_one_line(folder):
    from robustkd.data.images.compose import compose

    images = Deadly()
    data = compose(
        "deadly",
        ("a", "b"),
        images,
        {"validation": images, "test": images},
        Reading(image_size=8, workers=1, streaming=True),
    )
    with pytest.raises(InputError, match=r"^a process that decodes images died: an image crashed"):
        list(data.batches("train", batch_size=1))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EACCES, errno.ENOSPC, errno.EAGAIN])
def test_without_shared_memory_the_error_suggests_no_workers(number, folder, monkeypatch):
    """Locks between processes need it; some containers have none, or have no space left in it."""

    def unusable(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", unusable)
    data = load_folder(folder, Reading(image_size=8, workers=1, streaming=True))
    with pytest.raises(InputError) as caught:
        list(data.batches("train", batch_size=4))
    assert str(caught.value) == (
        f"processes that decode images cannot be started: {os.strerror(number)}; they need shared "
        "memory (/dev/shm) and room for further processes: provide both, or use --workers 0"
    )
    data = load_folder(folder, Reading(image_size=8, workers=0, streaming=True))
    assert list(data.batches("train", batch_size=4))


def test_ignored_signals_of_children_do_not_matter_to_workers(folder, expected):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        data = load_folder(folder, Reading(image_size=8, workers=2, streaming=True))
        assert list(data.batches("train", batch_size=4))
    finally:
        signal.signal(signal.SIGCHLD, before)

"""Each process loads its part of every batch, and the parts make up the batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from robustkd import data
from robustkd.core.types import Batch, DataSource
from robustkd.data import Reading, open_source
from robustkd.data.augment import Augmentation, CropFlip, RandAugmented, ZoomFlip
from robustkd.data.images import loader
from robustkd.data.portions import joined, portions
from tests.data.images.image_files import write_classes

AUGMENTATIONS = (CropFlip(2, flip=True), ZoomFlip(0.4), RandAugmented(CropFlip(1)))


def digits() -> DataSource:
    return data.load("digits", train=25, validation=12, test=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = write_classes(tmp_path_factory.mktemp("images") / "all", {"dark": 120, "light": 120})
    part = open_source(str(made), reading=Reading(image_size=12)).parts["train"]
    (made / part.name(3)).write_bytes(b"not an image")
    return made


def images(folder: Path, *, streaming: bool) -> DataSource:
    source = open_source(
        str(folder), reading=Reading(streaming=streaming, image_size=12, workers=0)
    )
    list(source.batches("train", batch_size=32))  # finds the damaged image
    return source.subset(train=25)


def loaded(
    source: DataSource, choice: Callable[[int], torch.Tensor] | None, *, join: bool = True
) -> list[tuple[Batch, int]]:
    order, crops = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    return list(
        portions(
            *(source, "train", choice),
            **{"batch_size": 8, "join": join, "shuffle": order, "augment": crops},
        )
    )


def other(source: DataSource) -> DataSource:
    """A source that knows nothing about parts, as a user may write it."""

    class Plain:
        def __getattr__(self, name: str) -> object:
            if name == "portions":
                raise AttributeError(name)
            return getattr(source, name)

    return Plain()  # type: ignore[return-value]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda it: type(it).__name__)
@pytest.mark.parametrize("kind", ["digits", "held", "streamed", "a user's own"])
@pytest.mark.parametrize("join", [True, False])
def test_the_parts_make_up_the_batches(folder, kind, augmentation: Augmentation, join):
    source: DataSource = {
        "digits": digits,
        "a user's own": lambda: other(digits()),
        "held": lambda: images(folder, streaming=False),
        "streamed": lambda: images(folder, streaming=True),
    }[kind]().with_augmentation(augmentation)  # type: ignore[attr-defined]
    whole = loaded(source, None, join=join)
    parts = [
        loaded(source, lambda size, rank=rank: torch.arange(size)[rank::3], join=join)
        for rank in range(3)
    ]
    assert [total for _, total in whole] == ([8, 8, 9] if join else [8, 8, 8, 1])
    for number, (expected, total) in enumerate(whole):
        for rank in range(3):
            found, its_total = parts[rank][number]
            assert its_total == total
            for values, all_values in zip(found, expected, strict=True):
                torch.testing.assert_close(values, all_values[rank::3])


def test_each_process_decodes_only_its_own_images(folder, monkeypatch):
    source = images(folder, streaming=True)
    decoded: list[int] = []
    usual = loader.Decoder.__getitem__

    def counted(self: loader.Decoder, portion: loader.Portion) -> loader.Decoded:
        decoded.extend(portion.rows)
        return usual(self, portion)

    monkeypatch.setattr(loader.Decoder, "__getitem__", counted)
    loaded(source, lambda size: torch.arange(size)[::4])
    assert len(decoded) == 2 + 2 + 3


def test_damaged_images_are_left_out_before_the_batches_are_divided(folder):
    source = open_source(str(folder), reading=Reading(streaming=True, image_size=12, workers=0))
    list(source.batches("train", batch_size=32))
    damaged = len(source.undecodable("train"))
    assert damaged == 1
    parts = [loaded(source, lambda size, rank=rank: torch.arange(size)[rank::2]) for rank in (0, 1)]
    for one, two in zip(*parts, strict=True):
        assert one[1] == two[1] == len(one[0].labels) + len(two[0].labels)
    assert sum(total for _, total in parts[0]) == source.size("train") - damaged


def test_a_last_batch_of_one_image_is_joined_to_the_batch_before():
    sizes = [len(batch.labels) for batch in joined(digits().batches("train", batch_size=8))]
    assert sizes == [8, 8, 9]

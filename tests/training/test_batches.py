"""Batches without end, and classes that are not those of the images."""

from __future__ import annotations

import pytest
import torch

from robustkd import data
from robustkd.core.errors import UsageError
from robustkd.core.types import Batch
from robustkd.training.batches import endless

DIGITS = data.load("digits", train=50, validation=20, test=20)


class Damaged:
    """Counts images in its size that its batches leave out, as folders with damaged files do."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.name, self.classes, self.image_shape = "damaged", DIGITS.classes, DIGITS.image_shape

    def size(self, split: str) -> int:
        return DIGITS.size(split)

    def batches(self, split: str, **how):
        for batch in DIGITS.batches(split, **how):
            kept = batch.rows < self.left
            if bool(kept.any()):
                yield Batch(*(part[kept] for part in batch))


def taken(left: int, batch_size: int, count: int) -> list[int]:
    order = torch.Generator().manual_seed(0)
    batches = endless(Damaged(left), batch_size, torch.device("cpu"), shuffle=order)
    return [len(next(batches).labels) for _ in range(count)]


@pytest.mark.parametrize("left", [49, 10, 1])
def test_a_batch_of_all_images_is_full_without_the_damaged_ones(left):
    assert taken(left, 128, 3) == [left] * 3


def test_smaller_batches_are_left_out_where_others_are_full():
    assert taken(50, 20, 4) == [20] * 4


def test_no_image_at_all_is_refused():
    with pytest.raises(UsageError, match=r"^damaged has no training image$"):
        taken(0, 20, 1)

"""A data source without labels of training images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from robustkd.core.types import UNLABELLED, Batch, Split
from robustkd.data import InMemory
from tests.wrapped import Wrapped


class Unlabelled(Wrapped):
    """A source without the labels of its training images, or of those before a row."""

    def __init__(self, data: InMemory, before: int | None = None) -> None:
        super().__init__(data)
        self._before = data.size("train") if before is None else before

    def batches(self, split: Split, **how: Any) -> Iterator[Batch]:
        for batch in self.source.batches(split, **how):
            labels = batch.labels.masked_fill(batch.rows < self._before, UNLABELLED)
            yield batch._replace(labels=labels) if split == "train" else batch

"""A data source without labels of training images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from robustkd.core.types import UNLABELLED, Batch, Split
from robustkd.data import InMemory


class Unlabelled:
    """A source without the labels of its training images, or of those before a row."""

    def __init__(self, data: InMemory, before: int | None = None) -> None:
        self._data, self._before = data, data.size("train") if before is None else before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def batches(self, split: Split, **how: Any) -> Iterator[Batch]:
        for batch in self._data.batches(split, **how):
            labels = batch.labels.masked_fill(batch.rows < self._before, UNLABELLED)
            yield batch._replace(labels=labels) if split == "train" else batch

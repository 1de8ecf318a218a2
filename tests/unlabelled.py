"""A data source without labels of training images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from robustkd.core.types import UNLABELLED, Batch, Split
from robustkd.data import InMemory


class Unlabelled:
    """A source without the labels of its training images."""

    def __init__(self, data: InMemory) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def batches(self, split: Split, **how: Any) -> Iterator[Batch]:
        for batch in self._data.batches(split, **how):
            labels = torch.full_like(batch.labels, UNLABELLED)
            yield batch._replace(labels=labels) if split == "train" else batch

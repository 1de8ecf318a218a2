"""A data source that passes on what it does not change, as a user may write one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from robustkd.core.types import Batch, DataSource, Split
from robustkd.data.wrapper import Wrapper


class Wrapped(Wrapper):
    """The same images as a source, and its other attributes."""

    # The methods of a data source are defined here: from Python 3.12 on, what `__getattr__` finds
    # does not count for `isinstance`, by which tests check the types of arguments.

    def __init__(self, source: DataSource) -> None:
        self.source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def size(self, split: Split) -> int:
        return self.source.size(split)

    def batches(self, split: Split, **how: Any) -> Iterator[Batch]:
        return self.source.batches(split, **how)

"""Where clean images come from; a new source is one loader and one row in `SOURCES`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from robustkd.data.augment import CropFlip
from robustkd.data.digits import load_digits
from robustkd.data.fashion_mnist import load_fashion_mnist
from robustkd.data.idx import read_idx
from robustkd.data.labelled import Labelled
from robustkd.data.memory import InMemory
from robustkd.errors import UsageError

__all__ = ["SOURCES", "CropFlip", "InMemory", "Labelled", "load", "names", "read_idx"]

SOURCES: dict[str, Callable[[Path | None], InMemory]] = {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
}
"""Loaders by name; each takes the folder of the data, or None to find it itself."""


def names() -> tuple[str, ...]:
    """Names that `load` knows, in alphabetical order."""
    return tuple(sorted(SOURCES))


def load(
    name: str,
    *,
    root: Path | None = None,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
) -> InMemory:
    """Load a data source by name, whole or as a class-balanced subset that is always the same.

    Args:
        name: One of `names`.
        root: Folder of the data; None for where the source usually is.
        train: Images to keep of this split, at least one for each class; None for all.
        validation: Likewise.
        test: Likewise.

    Raises:
        UsageError: An unknown name, a number out of range, or a ``root`` for bundled data.
        InputError: Files are missing or damaged.

    Example:
        >>> load("digits", train=100).size("train")
        100
    """
    if name not in SOURCES:
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "choose one of these"
        raise UsageError(f"unknown data source {name!r}: expected {', '.join(names())}; {hint}")
    return SOURCES[name](root).subset(train=train, validation=validation, test=test)

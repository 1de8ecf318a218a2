"""Compact lists of image files, with a byte or two of memory per image.

A list of (path, label) pairs takes hundreds of bytes per image, and each worker process copies it
gradually as reference counts change. An array and a file avoid both.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from robustkd.core.errors import printable
from robustkd.core.trees import Tree
from robustkd.data.images.decode import Stream
from robustkd.data.images.filenames import Names

_MOST_SHOWN = 600


@runtime_checkable
class Encoded(Protocol):
    """Sequence of encoded images with their classes."""

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """Class of each image."""

    def open(self, row: int) -> Stream:
        """Open the encoded bytes of an image.

        Raises:
            OSError: If they cannot be read.
        """

    def name(self, row: int) -> str:
        """Return the name of an image, which is unique and the same in every run."""


class Folder(NamedTuple):
    """Some image files of one folder.

    Attributes:
        path: The folder, relative to a root, with ``/`` between its parts.
        names: Names of the files.
        labels: Classes of the files, one for each or one for all.
    """

    path: str
    names: Iterable[str]
    labels: Iterable[int] | int


@dataclass(frozen=True, eq=False)
class Listing:
    """Image files below one root folder; made by `list_files`.

    Attributes:
        tree: Folder above all of them.
        labels: Class of each file, in the smallest type that holds all classes.
        names: Paths of the files relative to ``root``, with ``/`` between their parts.
    """

    tree: Tree
    labels: Int[np.ndarray, " n"] = field(repr=False)
    names: Names = field(repr=False)

    def open(self, row: int) -> Stream:
        """Open the file at ``row``; a file that is now outside of the root is refused."""
        return os.fdopen(self.tree.open(self.name(row)), "rb")

    def name(self, row: int) -> str:
        """Return the path at ``row`` relative to the root, with ``/`` between its parts."""
        return self.names[row]


def list_files(root: Path, folders: Iterable[Folder], *, classes: int) -> Listing:
    """Make a listing of files in the given order, without reading the files.

    Args:
        root: Folder above all of them, with no link in its path.
        folders: The files.
        classes: Number of classes, above every label.

    Raises:
        OverflowError: If a label is far out of range.
        InputError: If there is no space for the names.
    """
    names, labels = Names(), array(_smallest_type(classes))
    for folder in folders:
        added = names.extend(folder.names, prefix=f"{folder.path}/" if folder.path else "")
        own = folder.labels
        labels.extend(array(labels.typecode, [own]) * added if isinstance(own, int) else own)
    return Listing(Tree(root), np.asarray(labels), names)


def _smallest_type(classes: int) -> str:
    """Return the code of the smallest signed type for all labels."""
    return "b" if classes <= 1 << 7 else "h" if classes <= 1 << 15 else "i"


def shown(text: str | Path) -> str:
    r"""Return a name on one line with control characters escaped, for messages.

    The middle of a very long name is omitted.

    >>> shown("cat\n\x1b[2J.png")
    'cat\\n\\x1b[2J.png'
    """
    text = os.fspath(text)
    if len(text) > _MOST_SHOWN:
        text = f"{text[: _MOST_SHOWN // 2]}...{text[-_MOST_SHOWN // 2 :]}"
    return printable(text)

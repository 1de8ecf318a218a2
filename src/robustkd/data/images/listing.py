"""Where the images of a data set are, in a byte or two of memory an image.

A list of (path, label) pairs costs hundreds of bytes an image, and every worker process copies it
page by page as it touches the objects' reference counts. An array and a file do neither.
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
    """Encoded images with their classes, by number."""

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """Class of each image."""

    def open(self, row: int) -> Stream:
        """The encoded bytes of an image.

        Raises:
            OSError: They cannot be read.
        """

    def name(self, row: int) -> str:
        """What to call an image: no two have the same name, and it stays from run to run."""


class Folder(NamedTuple):
    """Some image files of one folder.

    Attributes:
        path: The folder, relative to a root, with ``/`` between its parts.
        names: Names of its files.
        labels: Their classes, one for each or one for all.
    """

    path: str
    names: Iterable[str]
    labels: Iterable[int] | int


@dataclass(frozen=True, eq=False)
class Listing:
    """Image files below one root; made by `list_files`, not by hand.

    Attributes:
        tree: Folder above all of them.
        labels: Class of each file, in the smallest type that holds all classes.
        names: Paths of the files relative to ``root``, with ``/`` between their parts.
    """

    tree: Tree
    labels: Int[np.ndarray, " n"] = field(repr=False)
    names: Names = field(repr=False)

    def open(self, row: int) -> Stream:
        """The file at ``row``, opened; one that has come to lie outside of the root is refused."""
        return os.fdopen(self.tree.open(self.name(row)), "rb")

    def name(self, row: int) -> str:
        """The path at ``row`` relative to the root, with ``/`` between its parts."""
        return self.names[row]


def list_files(root: Path, folders: Iterable[Folder], *, classes: int) -> Listing:
    """Remember files in the order in which they are given; nothing is read.

    Args:
        root: Folder above all of them, with no link in its path.
        folders: The files.
        classes: Number of classes, above every label.

    Raises:
        OverflowError: A label is far out of range.
        InputError: There is no space for the names.
    """
    names, labels = Names(), array(_smallest_type(classes))
    for folder in folders:
        added = names.extend(folder.names, prefix=f"{folder.path}/" if folder.path else "")
        own = folder.labels
        labels.extend(array(labels.typecode, [own]) * added if isinstance(own, int) else own)
    return Listing(Tree(root), np.asarray(labels), names)


def _smallest_type(classes: int) -> str:
    """Code of the smallest signed type that holds every label."""
    return "b" if classes <= 1 << 7 else "h" if classes <= 1 << 15 else "i"


def shown(text: str | Path) -> str:
    r"""A name from a stranger's folder on one line, with nothing in it that steers a terminal.

    The middle of a very long one is left out.

    >>> shown("cat\n\x1b[2J.png")
    'cat\\n\\x1b[2J.png'
    """
    text = os.fspath(text)
    if len(text) > _MOST_SHOWN:
        text = f"{text[: _MOST_SHOWN // 2]}...{text[-_MOST_SHOWN // 2 :]}"
    return printable(text)

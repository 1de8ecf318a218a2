"""Where the images of a data set are, in some tens of bytes an image.

A list of (path, label) pairs costs hundreds of bytes an image, and every worker process copies it
page by page as it touches the objects' reference counts. Arrays do neither.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, Int64

from robustkd.data.decode import Stream


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
        root: Folder above all of them.
        labels: Class of each file.
        folders: Folders relative to ``root``.
        starts: Row of the first file of each folder.
        names: File names, one behind the other, as the file system writes them.
        ends: Where each name ends.
    """

    root: Path
    labels: Int32[np.ndarray, " n"] = field(repr=False)
    folders: tuple[str, ...] = field(repr=False)
    starts: Int64[np.ndarray, " folders"] = field(repr=False)
    names: bytearray = field(repr=False)
    ends: Int64[np.ndarray, " n"] = field(repr=False)

    def open(self, row: int) -> Stream:
        """The file at ``row``, opened."""
        return (self.root / self.name(row)).open("rb")

    def name(self, row: int) -> str:
        """The path at ``row`` relative to the root, with ``/`` between its parts."""
        folder = self.folders[int(self.starts.searchsorted(row, side="right")) - 1]
        start = int(self.ends[row - 1]) if row else 0
        name = os.fsdecode(bytes(self.names[start : int(self.ends[row])]))
        return f"{folder}/{name}" if folder else name


def list_files(root: Path, folders: Iterable[Folder]) -> Listing:
    """Remember files in the order in which they are given; nothing is read."""
    names, paths = bytearray(), []
    starts, ends, labels = array("q"), array("q"), array("i")
    for folder in folders:
        starts.append(len(ends))
        for name in folder.names:
            names += os.fsencode(name)
            ends.append(len(names))
        own = folder.labels
        labels.extend([own] * (len(ends) - starts[-1]) if isinstance(own, int) else own)
        paths.append(folder.path)
    return Listing(
        root=root,
        labels=np.asarray(labels).view(np.int32),
        folders=tuple(paths),
        starts=np.asarray(starts).view(np.int64),
        names=names,
        ends=np.asarray(ends).view(np.int64),
    )


def shown(text: str | Path) -> str:
    r"""A name from a stranger's folder on one line, with nothing in it that steers a terminal.

    >>> shown("cat\n\x1b[2J.png")
    'cat\\n\\x1b[2J.png'
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in os.fspath(text)
    )

"""Folders of images in grids: names, which follow from their content, and what is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple, get_args

from robustkd.benchmark.cells import Cell
from robustkd.core.errors import InputError, UsageError
from robustkd.core.types import Split
from robustkd.data import Pictures, open_source
from robustkd.data.images.left_out import skipped_files

_AT_ONCE = 2**20


class Facts(NamedTuple):
    """What a grid tells of a folder of images.

    Attributes:
        name: Its name, and the start of the hash of its content.
        skipped: Number of files and folders that are left out, by kind.
    """

    name: str
    skipped: Mapping[str, int]


def left_out(cells: Iterable[Cell]) -> dict[str, Mapping[str, int]]:
    """Return the number of files that each folder of a grid leaves out by kind, by its name."""
    folders = dict.fromkeys(cell.teacher.setting.path for cell in cells)
    found = [folder_facts(folder) for folder in folders if folder]
    return {facts.name: facts.skipped for facts in found if facts.skipped}


@lru_cache
def folder_facts(folder: str) -> Facts:
    """Return the name of a folder of images, and what is left out of it.

    All files are read. Names, classes and bytes of the images of each split count; the path of
    the folder does not, so that results keep their names when it is moved.

    Args:
        folder: Path, as :func:`robustkd.data.sources.folder.load_folder` takes it.

    Raises:
        UsageError: If this is not a folder of images.
        InputError: If a file cannot be read.
    """
    source = open_source(folder)
    if not isinstance(source, Pictures):
        raise UsageError(f"data.path is {folder!r}; expected a folder of images")
    content = hashlib.sha256("\n".join(source.classes).encode())
    for split in get_args(Split):
        part = source.parts[split]
        for row, label in enumerate(part.labels.tolist()):
            image = hashlib.sha256()
            try:
                with part.files.open(int(part.rows[row])) as stream:
                    while block := stream.read(_AT_ONCE):
                        image.update(block)
            except OSError as error:
                raise InputError(f"{folder}: {part.name(row)}: {error.strerror}") from error
            content.update(f"{split} {part.name(row)} {label} {image.hexdigest()}\n".encode())
    return Facts(f"{source.name}-{content.hexdigest()[:12]}", skipped_files(source))

"""Names of folders of images in grids, which follow from their content."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import get_args

from robustkd.core.errors import InputError, UsageError
from robustkd.core.types import Split
from robustkd.data import Pictures, open_source

_AT_ONCE = 2**20


@lru_cache
def folder_name(folder: str) -> str:
    """Return the name of a folder of images, and the start of the hash of its content.

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
    return f"{source.name}-{content.hexdigest()[:12]}"

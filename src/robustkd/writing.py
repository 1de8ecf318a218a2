"""Files that are never there in part, whenever the process or the machine stops."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from robustkd.errors import WriteError

PARTIAL = ".partial"
"""Behind the name of a file that is being written."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a name to write to, and put that file in the place of ``path`` when the block ends well.

    Both are on the disk before the old content is gone.

    Raises:
        WriteError: If it cannot be written; nothing is left beside it.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        _to_disk(partial)
        os.replace(partial, path)
        # A renamed file outlives a power failure when its folder is on the disk too.
        _to_disk(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise refusal(path, error) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file as :func:`write_lines` does."""
    write_lines(path, [text])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file whole, piece by piece.

    Raises:
        WriteError: If it cannot be written.
    """
    with whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(lines)


def refusal(path: Path, error: OSError) -> WriteError:
    """What to tell of a file that the system did not let us write."""
    return WriteError(f"{path} cannot be written: {error.strerror or error}")


def _to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be opened there, and need not be
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files and folders for output: text and JSON are written completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from robustkd.core.errors import InputError, UsageError, WriteError

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


def new_folder(path: Path) -> Path:
    """Make an empty folder for a run.

    Raises:
        UsageError: If it exists and holds anything, other than a file that was never finished.
        InputError: If it cannot be made.
    """
    check_free(path)
    return make_folder(path)


def check_free(path: Path) -> None:
    """Refuse a folder that holds anything, before a run that takes hours.

    Raises:
        UsageError: If it exists and holds anything, other than a file that was never finished.
        InputError: If it exists and cannot be read.
    """
    try:
        there = path.is_dir()
    except OSError:
        return  # a folder above it is closed; making it will say so
    try:
        used = there and any(found.suffix != PARTIAL for found in path.iterdir())
    except OSError as error:
        raise InputError(f"output folder {path} cannot be read: {error.strerror}") from error
    if used:
        raise UsageError(f"output folder {path} is not empty; give a new one with --out")


def free_name(path: Path) -> Path:
    """The path itself, or with -2, -3, ... behind it, so that nothing is there yet."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(free for free in chain([path], numbered) if not free.exists())


def make_folder(path: Path) -> Path:
    """Make a folder that may be there already, with whatever is in it.

    Raises:
        InputError: If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output folder {path} cannot be made: {error.strerror}") from error
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON object, whole or not at all.

    Raises:
        WriteError: If it cannot be written.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that :func:`write_json` wrote.

    Raises:
        InputError: If it cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{path} cannot be read as a run's file: {reason}") from error
    return content

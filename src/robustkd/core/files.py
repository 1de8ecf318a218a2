"""Output files and folders; text and JSON files are written completely or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from robustkd.core.errors import InputError, UsageError
from robustkd.core.folders import LEFTOVER, LOCK, Folder, refusal


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and move the file there to ``path`` when the block ends.

    An existing file is replaced and a link is never followed: see `robustkd.core.folders.Folder`.

    Raises:
        WriteError: If the file cannot be written; no temporary file is left behind.
    """
    with _parent(path) as folder, folder.replacing(path.name) as partial:
        yield partial


def write_text(path: Path, text: str) -> None:
    """Write a text file as :func:`write_lines` does."""
    write_lines(path, [text])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file line by line, completely or not at all.

    Raises:
        WriteError: If it cannot be written.
    """
    with replacing(path) as partial, partial.open("x", encoding="utf-8") as file:
        file.writelines(lines)


def _parent(path: Path) -> Folder:
    try:
        return Folder.at(path.parent)
    except OSError as error:
        raise refusal(path, error) from error


@contextmanager
def new_folder(path: Path, *, keep_lock: bool = True) -> Iterator[Folder]:
    """Create an empty folder and lock it for this process until the block ends.

    A block that fails before it has written a file leaves no folder, which would block the next
    attempt.

    Args:
        path: The folder.
        keep_lock: If False, the file of the lock is removed when the block ends, for folders that
            no other process continues.

    Raises:
        UsageError: If the folder exists and is not empty.
        InputError: If it cannot be created, or another process has locked it.
    """
    check_free(path)
    known = path.exists()
    make_folder(path)
    try:
        with open_folder(path) as folder, locked(folder, seconds=0.0):
            # Another process may have used the folder since the first check.
            check_empty(folder)
            folder.clean(None)
            try:
                yield folder
            finally:
                if not keep_lock or set(folder.names()) <= {LOCK}:
                    folder.remove(LOCK)
    except BaseException:
        if not known:
            with suppress(OSError):
                path.rmdir()  # unless it has files
        raise


@contextmanager
def locked(folder: Folder, *, seconds: float) -> Iterator[None]:
    """Lock a folder for this process while the block lasts.

    Args:
        folder: An open folder.
        seconds: How long to wait for another process.

    Raises:
        InputError: If another process has it, or its lock cannot be created.
    """
    with ExitStack() as held:
        try:
            held.enter_context(folder.locked(seconds=seconds))
        except TimeoutError as error:
            message = f"{folder.path} is in use by another process; wait until it has ended"
            raise InputError(message) from error
        except OSError as error:
            raise refusal(folder.path / LOCK, error) from error
        yield


def at_home(text: str) -> str:
    """Return a path with the user's home folder in place of ``~``, which a shell leaves in quotes.

    Only ``~`` itself and ``~/...`` are replaced, and only if there is no file of that name.
    """
    if (text == "~" or text.startswith("~/")) and not os.path.lexists(text):
        return os.path.expanduser(text)
    return text


def check_free(path: Path) -> None:
    """Raise an error for an output folder that cannot be used, before a run that takes hours.

    It must be empty and writable, or missing where it can be created. Links to folders are
    followed.

    Raises:
        UsageError: If the folder exists and is not empty.
        InputError: If it is not a folder, or cannot be created or read.
        WriteError: If it exists and cannot be written.
    """
    if os.path.isdir(path):
        with open_folder(path) as folder:
            check_empty(folder)
        check_writable(path)
        return
    if os.path.lexists(path):
        raise _not_made(path, os.strerror(errno.EEXIST))
    above = next((part for part in path.parents if os.path.lexists(part)), None)
    if above is not None and not os.path.isdir(above):
        raise _not_made(path, os.strerror(errno.ENOTDIR))
    if above is not None and not os.access(above, os.W_OK | os.X_OK):
        raise _not_made(path, os.strerror(errno.EACCES))


def check_writable(path: Path) -> None:
    """Raise an error for a folder in which no file can be created.

    Raises:
        WriteError: If none can.
    """
    if not os.access(path, os.W_OK | os.X_OK):
        raise refusal(path, OSError(errno.EACCES, os.strerror(errno.EACCES)))


def check_empty(folder: Folder) -> None:
    """Raise an error for an open folder that contains anything but its lock and leftovers.

    Leftovers are folders for incomplete files. A link or a file of such a name is none.

    Raises:
        UsageError: If it does.
    """
    if any(name != LOCK and not _is_leftover(folder, name) for name in folder.names()):
        raise UsageError(f"output folder {folder.path} is not empty; give a new one with --out")


def _is_leftover(folder: Folder, name: str) -> bool:
    if LEFTOVER.fullmatch(name) is None:
        return False
    try:
        found = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return True  # its process has just removed it
    return stat.S_ISDIR(found.st_mode)


def open_folder(path: Path) -> Folder:
    """Open an output folder.

    Raises:
        InputError: If it cannot be opened.
    """
    try:
        return Folder.at(path)
    except OSError as error:
        raise InputError(f"output folder {path} cannot be read: {error.strerror}") from error


def is_regular(path: Path) -> bool:
    """Return whether a file is at a path; links are followed.

    `pathlib.Path.is_file` hides every error from Python 3.14 on, so that a file in a folder without
    permission seems to be missing.

    Raises:
        OSError: If this cannot be found out, such as for lack of permission.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def free_name(path: Path) -> Path:
    """Return the path, or the first of ``path-2``, ``path-3``, ... that does not exist."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(free for free in chain([path], numbered) if not os.path.lexists(free))


def make_folder(path: Path) -> Path:
    """Create a folder; an existing one is kept with its content.

    Raises:
        InputError: If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_made(path, error.strerror) from error
    return path


def _not_made(path: Path, reason: str | None) -> InputError:
    return InputError(f"output folder {path} cannot be made: {reason}")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write one JSON object, completely or not at all.

    Raises:
        WriteError: If it cannot be written.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that :func:`write_json` wrote.

    Raises:
        InputError: If it cannot be read, is a link or not a regular file, or is no JSON object.
    """
    try:
        with Folder.at(path.parent) as folder:
            content = json.loads(folder.read(path.name))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{path} cannot be read as a run's file: {reason}") from error
    return content

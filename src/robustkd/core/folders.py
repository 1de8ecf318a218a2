"""Folders whose content may come from somebody else.

A run folder can arrive in an archive with links in the place of files. Every function here opens
its file relative to a folder's descriptor, never follows a link below it, accepts regular files
only, and reads no more than a stated number of bytes.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustkd.core.errors import InputError, printable

_LOCK = ".lock"
_POLL_SECONDS = 0.1
_NO_LINK = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO would block for ever


def read_regular(path: Path, *, most: int) -> bytes:
    """Read a regular file of bounded size without following a link in its place.

    Args:
        path: The file. Links among the folders above it are followed.
        most: Largest size in bytes that is read.

    Raises:
        InputError: If it is missing, a link, no regular file, or larger.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_LINK)
    except OSError as error:
        raise InputError(f"{printable(str(path))} cannot be read: {_reason(error)}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{printable(str(path))} is not a regular file")
        if status.st_size > most:
            raise InputError(
                f"{printable(str(path))} has {status.st_size:,} bytes; expected at most {most:,}"
            )
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{printable(str(path))} grew while it was read")
    return content


def is_regular(path: Path) -> bool:
    """Whether there is a regular file, and no link, at a path."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def open_for_append(path: Path) -> int:
    """Open a regular file for appending, or create it; return its descriptor.

    A file with a second name (a hard link) is refused as well, since what is appended would appear
    under that name too.

    Raises:
        InputError: If something else is at the path.
        OSError: If the system refuses for another reason, such as a full disk.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise InputError(
                f"{printable(str(path))} is a link or no regular file; remove it"
            ) from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise InputError(f"{printable(str(path))} is a link or no regular file; remove it")
    return descriptor


def check_real_folder(path: Path) -> None:
    """Refuse a path that is not a folder, or is a link to one.

    Raises:
        InputError: If it is a link or anything else than a folder.
    """
    if not stat.S_ISDIR(path.lstat().st_mode):
        raise InputError(f"{printable(str(path))} is a link or no folder; remove it")


@contextmanager
def locked(folder: Path, *, seconds: float, name: str = _LOCK) -> Iterator[None]:
    """Hold a folder's lock while the block lasts.

    The lock is a file in the folder that stays there. The system releases it when the process ends,
    however it ends.

    Args:
        folder: An existing folder.
        seconds: How long to wait for another process.
        name: Name of the lock file.

    Raises:
        InputError: If another process holds it, or the lock file is a link.
        OSError: If the lock file cannot be created.
    """
    import fcntl

    descriptor = open_for_append(folder / name)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise InputError(
                        f"{printable(str(folder))} is in use by another process; wait for its end"
                    ) from None
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def entries(folder: Path) -> list[str]:
    """Names in a folder, sorted, without the lock of :func:`locked`."""
    return sorted(name for name in os.listdir(folder) if name != _LOCK)


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a link; expected a regular file"
    return error.strerror or type(error).__name__

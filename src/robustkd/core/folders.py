"""Access to folders that an attacker may have prepared, without following links.

A folder is held by a descriptor, and every file in it is opened relative to that descriptor:
without following a link, and only if it is a regular file. A file is written under a random name
that did not exist before, and takes its final name when it is complete. So a prepared folder
cannot make this package read, change or delete anything outside of it.

These calls exist on Linux and macOS; on other systems folders are refused.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from robustkd.core.errors import InputError, WriteError, limit_to_raise

LOCK = ".lock"
"""Name of the file that marks a folder as being in use."""
LEFTOVER = re.compile(r"\.robustkd-[A-Za-z0-9-]+-[0-9a-f]{16}\.partial")
"""Pattern of the names of private folders, which killed processes leave behind."""

MOST_TEXT = 1 << 26
"""Largest JSON or text file that is read from a folder, in bytes."""

_LINK = "it is a symbolic link"
_SUPPORTED = os.open in os.supports_dir_fd
_PAUSE = 0.05
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)


class UnsafeError(OSError):
    """A file or folder is not one that this package writes: a link, a device, or far too large."""


class Folder:
    """An open folder, for use in a ``with`` statement or until :meth:`close`.

    Args:
        path: Path of the folder, for messages.
        descriptor: Open descriptor of the folder; it is closed with the folder.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    @classmethod
    def at(cls, path: Path) -> Folder:
        """Open the folder at a path given by the user; links in the path itself are followed.

        Raises:
            OSError: If the folder cannot be opened.
            InputError: If the operating system lacks the necessary calls.
        """
        if not _SUPPORTED:
            raise InputError(f"{path} cannot be opened safely on this system; use Linux or macOS")
        return cls(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)

    def inside(self, name: str, *, make: bool = False) -> Folder:
        """Open a folder within this one.

        Args:
            name: Name of the inner folder.
            make: If True, create the folder if it is missing.

        Raises:
            OSError: If it cannot be opened, is a link, or is not a folder.
        """
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=self.descriptor)
        flags = os.O_RDONLY | os.O_DIRECTORY | NO_LINK
        try:
            return Folder(self.path / name, os.open(name, flags, dir_fd=self.descriptor))
        except OSError as error:
            if _is_link(name, self.descriptor):
                raise UnsafeError(errno.ELOOP, f"{_LINK}, not a folder") from error
            raise

    def names(self) -> list[str]:
        """Return the names of all entries of the folder, in no particular order."""
        return os.listdir(self.descriptor)

    def has(self, name: str) -> bool:
        """Return whether the folder has an entry of that name; a dangling link counts as one."""
        try:
            os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def open(self, name: str) -> BinaryIO:
        """Open a regular file for reading.

        Raises:
            OSError: If it cannot be opened, or is a link or no regular file.
        """
        return os.fdopen(open_plain(name, os.O_RDONLY, self.descriptor), "rb")

    def read(self, name: str, *, most: int = MOST_TEXT) -> bytes:
        """Read a regular file of at most ``most`` bytes.

        Raises:
            OSError: If it cannot be read, is a link or no regular file, or is larger.
        """
        with self.open(name) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise UnsafeError(errno.EFBIG, f"it has more than {most:,} bytes")
        return content

    def append(self, name: str) -> int:
        """Open a regular file for appending, create it if it is missing, and return its descriptor.

        Raises:
            OSError: If it cannot be opened, is a link, is not a regular file, or has a second name
                (a hard link), which may be outside of the folder.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        descriptor = open_plain(name, flags, self.descriptor)
        if os.fstat(descriptor).st_nlink > 1:
            os.close(descriptor)
            raise UnsafeError(errno.EMLINK, "it has a second name (a hard link)")
        return descriptor

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Yield a temporary path, and rename the file there to ``name`` when the block ends.

        The old content is kept until the new content is on the disk. The temporary path is in a
        private folder with a random name, and is meant for libraries that need a path.

        Raises:
            WriteError: If it cannot be written; no temporary file is left behind.
        """
        try:
            private = self.private()
            try:
                with self.inside(private) as own:
                    yield own._reach(name)
                    _to_disk(name, own.descriptor)
                    os.rename(name, name, src_dir_fd=own.descriptor, dst_dir_fd=self.descriptor)
            finally:
                shutil.rmtree(private, ignore_errors=True, dir_fd=self.descriptor)
            # A renamed file survives a power failure only after its folder has been synchronised.
            os.fsync(self.descriptor)
        except OSError as error:
            raise refusal(self.path / name, error) from error

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Open a file that is renamed to ``name`` when the block ends; see `replacing`.

        Raises:
            WriteError: If it cannot be written; no temporary file is left behind.
        """
        with self.replacing(name) as path, path.open("xb") as file:
            yield file

    def write(self, name: str, text: str) -> None:
        """Write a text file, completely or not at all.

        Raises:
            WriteError: If it cannot be written.
        """
        with self.writing(name) as file:
            file.write(text.encode("utf-8"))

    def remove(self, name: str) -> None:
        """Remove a file; if it is a link, only the link is removed.

        Raises:
            OSError: If it cannot be removed.
        """
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def private(self, purpose: str = "file") -> str:
        """Create a folder for incomplete files within this one, and return its random name.

        Args:
            purpose: Purpose that becomes part of the name: letters, digits and dashes.

        Raises:
            OSError: If it cannot be made.
        """
        name = f".robustkd-{purpose}-{secrets.token_hex(8)}.partial"
        os.mkdir(name, dir_fd=self.descriptor)
        return name

    def clean(self, purpose: str | None = "file") -> None:
        """Remove the folders of `private` that killed processes have left behind.

        Args:
            purpose: Purpose of the folders; None for all purposes.
        """
        for name in filter(LEFTOVER.fullmatch, self.names()):
            if purpose not in (None, name.removeprefix(".robustkd-").rpartition("-")[0]):
                continue
            shutil.rmtree(name, ignore_errors=True, dir_fd=self.descriptor)

    @contextmanager
    def locked(self, name: str = LOCK, *, seconds: float) -> Iterator[None]:
        """Hold an exclusive lock while the block lasts; it is released if the process ends.

        Args:
            name: Name of the lock file; it is created if it is missing.
            seconds: How long to wait for another process.

        Raises:
            TimeoutError: If another process still holds it.
            OSError: If the file cannot be opened, or is a link or no regular file.
        """
        descriptor = self._lock(name, time.monotonic() + seconds)
        try:
            yield
        finally:
            os.close(descriptor)

    def _lock(self, name: str, deadline: float) -> int:
        import fcntl

        while True:
            descriptor = open_plain(name, os.O_RDWR | os.O_CREAT, self.descriptor, mode=0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The file may have been removed by the last owner and created again by another.
                with suppress(FileNotFoundError):
                    now = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
                    if os.path.samestat(os.fstat(descriptor), now):
                        return descriptor
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    raise TimeoutError(errno.ETIMEDOUT, "it is in use") from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            time.sleep(_PAUSE)

    def _reach(self, name: str) -> Path:
        """Return a path for libraries, through the descriptor if the system has /proc."""
        through = Path(f"/proc/self/fd/{self.descriptor}")
        return (through if through.is_dir() else self.path) / name


def open_plain(name: str, flags: int, folder: int | None = None, *, mode: int = 0o666) -> int:
    """Open a regular file without following a link, or waiting for the other end of a FIFO.

    Args:
        name: Name in the folder.
        flags: Flags of :func:`os.open`.
        folder: Descriptor of the folder; None for the working directory.
        mode: Permissions of a new file, before the umask.

    Raises:
        OSError: If it cannot be opened, or is a link or no regular file.
    """
    try:
        descriptor = os.open(name, flags | NO_LINK | _NO_WAIT, mode, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafeError(errno.ELOOP, _LINK) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnsafeError(errno.EINVAL, "it is not a regular file")
    return descriptor


def refusal(path: Path, error: OSError) -> InputError:
    """Return the error for a file that could not be written or that is unsafe."""
    if isinstance(error, UnsafeError):
        return InputError(f"{path} is refused: {error.strerror}; remove it")
    advice = f"; {limit_to_raise(error)}" if error.errno == errno.EFBIG else ""
    return WriteError(f"{path} cannot be written: {error.strerror or error}{advice}")


def _is_link(name: str, folder: int) -> bool:
    with suppress(OSError):
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False


def _to_disk(name: str, folder: int) -> None:
    descriptor = open_plain(name, os.O_RDONLY, folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

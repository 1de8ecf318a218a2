"""Paths that are walked folder by folder, so that a link in one of them leads nowhere else.

A data set is a tree of folders from a stranger, and a teacher's file lies in one. What may be a
link, and what may not, is decided here.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterable
from pathlib import Path

from robustkd.core.errors import InputError
from robustkd.core.folders import NO_LINK, Folder, UnsafeError, open_plain

_LONGEST_PATH = 4096
"""Of Linux, in bytes; deeper folders cannot be named, and would take ever longer to reach."""

_KEPT_OPEN = 32
"""Folders whose descriptors are kept, as the next image often lies in one of them."""

# Searching a folder needs less permission than listing it, where the system makes the difference.
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0)


class Tree:
    """Files below a root folder; links may lead from one place in it to another, never outside.

    Args:
        root: The folder, with no link in its path.
    """

    def __init__(self, root: Path) -> None:
        self.__setstate__(root)

    def __getstate__(self) -> Path:
        # A descriptor means nothing in another process; it is opened there anew.
        return self.root

    def __setstate__(self, root: Path) -> None:
        self.root = root
        self._top: int | None = None
        self._folders: dict[str, int] = {}
        weakref.finalize(self, _close_all, self._folders)

    def open(self, path: str) -> int:
        """Open a regular file below the root for reading; returns its descriptor.

        Args:
            path: Relative to the root, with ``/`` between its parts.

        Raises:
            OSError: If it cannot be opened, is not a regular file, or lies outside of the root.
        """
        try:
            return self._open(path)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            goal = os.path.realpath(os.path.join(self.root, path))
            within = os.path.relpath(goal, self.root)
            if within.split(os.sep, 1)[0] == os.pardir:
                raise UnsafeError(errno.ELOOP, "a link that leaves the folder") from error
            # Without any link now: what has become one in the meantime is refused.
            return self._open(within)

    def folder(self, path: str) -> Folder:
        """Open a folder below the root, on whose way there is no link.

        Raises:
            OSError: If it cannot be opened, or there is a link on the way.
        """
        if len(os.fsencode(os.path.join(self.root, path))) >= _LONGEST_PATH:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        parent = self._walk(path.split("/") if path else [])
        try:
            found = os.open(".", os.O_RDONLY | os.O_DIRECTORY | NO_LINK, dir_fd=parent)
        finally:
            os.close(parent)
        return Folder(self.root / path, found)

    def _open(self, path: str) -> int:
        folder, _, name = path.rpartition("/")
        known = folder in self._folders
        try:
            return open_plain(name, os.O_RDONLY, self._parent(folder))
        except FileNotFoundError:
            if not known:
                raise
        # Another folder may have taken the place of the one that is kept open.
        os.close(self._folders.pop(folder))
        return open_plain(name, os.O_RDONLY, self._parent(folder))

    def _parent(self, folder: str) -> int:
        """The descriptor of a folder below the root, which is kept open for the next file."""
        parent = self._folders.get(folder)
        if parent is None:
            parent = self._walk(folder.split("/") if folder else [])
            while len(self._folders) >= _KEPT_OPEN:
                os.close(self._folders.pop(next(iter(self._folders))))
            self._folders[folder] = parent
        return parent

    def _walk(self, names: list[str]) -> int:
        """The new descriptor of the folder to which the names lead from the root, without links."""
        if self._top is None:
            self._top = _walk_from_top(self.root)
            weakref.finalize(self, os.close, self._top)
        return _descend(os.dup(self._top), names)


def _close_all(descriptors: dict[str, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def open_named(path: Path) -> int:
    """Open a regular file at a path that the user named; returns its descriptor.

    The path may pass through links that users and systems set up themselves: in the root folder
    and directly below it, in the home and working directories and above them. Any other link, and
    the file's own, must stay in the folder that holds it, since it may have come with that folder.

    Raises:
        OSError: If it cannot be opened, or is no regular file.
        InputError: If a link leaves its folder.
    """
    found = path.resolve(strict=True)
    _check_links(path)
    top = _walk_from_top(found.parent)
    try:
        return open_plain(found.name, os.O_RDONLY, top)
    finally:
        os.close(top)


def readable_path(descriptor: int) -> str:
    """A path through which a library can open a file that is open already."""
    known = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    return f"{known}/{descriptor}"


def _check_links(path: Path) -> None:
    """Refuse a path with a link in it that leaves a folder which others may have made."""
    parts = Path(os.path.join(os.getcwd(), path)).parts
    here, last = Path(parts[0]), len(parts) - 1
    for place, name in enumerate(parts[1:], start=1):
        if name == os.pardir:
            here = here.parent
            continue
        step = here / name
        if step.is_symlink():
            goal = step.resolve(strict=True)
            stays = goal.is_relative_to(here)
            if not stays and (place == last or not _is_users_own(here)):
                what = "the file itself" if place == last else "the path that it leads to"
                shown = ascii(str(goal) if len(str(goal)) <= 120 else f"{str(goal)[:120]}...")
                raise InputError(
                    f"{path if place == last else step} is a symbolic link that leaves its "
                    f"folder; give {what}: {shown}"
                )
            step = goal
        here = step


def _is_users_own(folder: Path) -> bool:
    """Whether links in a folder are those of the user or the system, not part of a download."""
    home = Path(os.path.expanduser("~"))
    own = (home, home.resolve(), home.resolve() / ".cache", Path.cwd())
    return len(folder.parts) <= 2 or any(place.is_relative_to(folder) for place in own)


def _walk_from_top(path: Path) -> int:
    """Open a folder for searching, from the file system's root and without following a link."""
    return _descend(os.open(path.anchor, _SEARCH | NO_LINK), path.parts[1:])


def _descend(folder: int, names: Iterable[str]) -> int:
    """Step into folders one after the other, without following a link; closes all but the last."""
    for name in names:
        try:
            inner = os.open(name, _SEARCH | NO_LINK, dir_fd=folder)
        finally:
            os.close(folder)
        folder = inner
    return folder

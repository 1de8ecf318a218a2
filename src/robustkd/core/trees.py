"""Opening files below a folder, one path component at a time, with checked links.

A data set or the folder of a teacher's file may come from an attacker. This module decides which
links are followed.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterable
from pathlib import Path

from robustkd.core.errors import InputError, quoted
from robustkd.core.folders import NO_LINK, Folder, UnsafeError, open_plain

_LONGEST_PATH = 4096
"""Longest path in bytes, as in Linux; folders that are nested deeper are refused."""

_KEPT_OPEN = 32
"""Number of folders that are kept open, because the next image is often in one of them."""

_CACHED = ("models--", "datasets--")

# On systems that have O_PATH, opening a folder to search it needs less permission than listing it.
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0)


class Tree:
    """Files below a root folder; links may lead to other files below it, but never outside.

    Args:
        root: The folder, with no link in its path.
    """

    def __init__(self, root: Path) -> None:
        self.__setstate__(root)

    def __getstate__(self) -> Path:
        # A descriptor is not valid in another process, which opens the folder again.
        return self.root

    def __setstate__(self, root: Path) -> None:
        self.root = root
        self._top: int | None = None
        self._folders: dict[str, int] = {}
        weakref.finalize(self, _close_all, self._folders)

    def open(self, path: str) -> int:
        """Open a regular file below the root for reading, and return its descriptor.

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
            # The resolved path has no links; a component that has become one since is refused.
            return self._open(within)

    def folder(self, path: str) -> Folder:
        """Open a folder below the root; a path with a link is refused.

        Raises:
            OSError: If the folder cannot be opened, or its path contains a link.
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
        # The folder that is kept open may have been replaced by another one.
        os.close(self._folders.pop(folder))
        return open_plain(name, os.O_RDONLY, self._parent(folder))

    def _parent(self, folder: str) -> int:
        """Return the descriptor of a folder below the root, and keep it open for the next file."""
        parent = self._folders.get(folder)
        if parent is None:
            parent = self._walk(folder.split("/") if folder else [])
            while len(self._folders) >= _KEPT_OPEN:
                os.close(self._folders.pop(next(iter(self._folders))))
            self._folders[folder] = parent
        return parent

    def _walk(self, names: list[str]) -> int:
        """Open the folder that the names lead to from the root, and return its descriptor."""
        if self._top is None:
            self._top = _walk_from_top(self.root)
            weakref.finalize(self, os.close, self._top)
        return _descend(os.dup(self._top), names)


def _close_all(descriptors: dict[str, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def open_named(path: Path) -> int:
    """Open a regular file at a path given by the user, and return its descriptor.

    The path may contain links that users and systems set up themselves: in the root folder and
    directly below it, in the home and working directories, and in their parents. Any other link
    must stay within its own folder, since it may have been downloaded together with that folder; in
    the cache of the Hugging Face Hub, within the folder of its repository.

    Raises:
        OSError: If it cannot be opened, or is not a regular file.
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
    """Return a path through which a library can open an open file again."""
    known = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    return f"{known}/{descriptor}"


def _check_links(path: Path) -> None:
    """Raise an error for a path with a link that leaves a folder of unknown origin."""
    parts = Path(os.path.join(os.getcwd(), path)).parts
    here, last = Path(parts[0]), len(parts) - 1
    for place, name in enumerate(parts[1:], start=1):
        if name == os.pardir:
            here = here.parent
            continue
        step = here / name
        if step.is_symlink():
            goal = step.resolve(strict=True)
            stays = goal.is_relative_to(_downloaded(here))
            if not stays and (place == last or not _is_users_own(here)):
                what = "the file itself" if place == last else "the path that it leads to"
                raise InputError(
                    f"{path if place == last else step} is a symbolic link that leaves its "
                    f"folder; give {what}: {quoted(str(goal))}"
                )
            step = goal
        here = step


def _downloaded(folder: Path) -> Path:
    """Return the folder that was downloaded together with this one.

    The cache of the Hugging Face Hub has links of the form
    ``models--OWNER--NAME/snapshots/REVISION/FILE`` to ``models--OWNER--NAME/blobs/HASH``.
    """
    for above in folder.parents:
        if above.name.startswith(_CACHED) and folder.relative_to(above).parts[0] == "snapshots":
            return above
    return folder


def _is_users_own(folder: Path) -> bool:
    """Return whether links in a folder were made by the user or the system, not downloaded."""
    home = Path(os.path.expanduser("~"))
    own = (home, home.resolve(), home.resolve() / ".cache", Path.cwd())
    return len(folder.parts) <= 2 or any(place.is_relative_to(folder) for place in own)


def _walk_from_top(path: Path) -> int:
    """Open a folder for searching, starting at the root and without following links."""
    return _descend(os.open(path.anchor, _SEARCH | NO_LINK), path.parts[1:])


def _descend(folder: int, names: Iterable[str]) -> int:
    """Open nested folders one after the other without following links; close all but the last."""
    for name in names:
        try:
            inner = os.open(name, _SEARCH | NO_LINK, dir_fd=folder)
        finally:
            os.close(folder)
        folder = inner
    return folder

"""Cache of trained networks by the hash of their configuration."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from robustkd.core.errors import InputError
from robustkd.core.folders import LEFTOVER, Folder, refusal

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Store:
    """A folder of cache entries, each of which is a complete folder or missing.

    It can be shared by several processes and machines. A killed process leaves no incomplete
    entry, and what it leaves under another name is removed by `clean` or with the next attempt.
    """

    root: Path

    def fetch(self, key: str, make: Callable[[Path], None]) -> Path:
        """Return the folder of a key; if it is missing, ``make`` fills it in one process at a time.

        Raises:
            InputError: If a folder is a link, cannot be read, or cannot be created.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with Folder.at(self.root) as root:
                if not root.has(key):
                    self._make(root, key, make)
                root.inside(key).close()
        except OSError as error:
            raise refusal(self.root / key, error) from error
        return self.root / key

    def read(self, key: str, make: Callable[[Path], None], load: Callable[[Path], _Read]) -> _Read:
        """Return what ``load`` reads from the folder of a key, which `fetch` makes if necessary.

        A damaged entry is not replaced, since somebody may have changed it on purpose.

        Raises:
            InputError: As `fetch`, or if the entry is damaged; the message names its folder.
        """
        folder = self.fetch(key, make)
        try:
            return load(folder)
        except InputError as error:
            raise InputError(f"{error}; to make it again, remove the folder {folder}") from error

    def clean(self) -> None:
        """Remove what killed processes have left behind of any key, unless it is in progress.

        Raises:
            InputError: If the folder or the lock of a key cannot be opened, or is a link.
        """
        try:
            with Folder.at(self.root) as root:
                for name in filter(LEFTOVER.fullmatch, root.names()):
                    key = name.removeprefix(".robustkd-").rpartition("-")[0]
                    with suppress(TimeoutError), root.locked(f"{key}.lock", seconds=0.0):
                        root.clean(key)
        except OSError as error:
            raise refusal(self.root, error) from error

    def _make(self, root: Folder, key: str, make: Callable[[Path], None]) -> None:
        with root.locked(f"{key}.lock", seconds=math.inf):
            # Only leftovers of this key are removed: other keys may be in progress.
            root.clean(key)
            if root.has(key):
                return
            partial = root.private(key)
            make(self.root / partial)
            os.rename(partial, key, src_dir_fd=root.descriptor, dst_dir_fd=root.descriptor)

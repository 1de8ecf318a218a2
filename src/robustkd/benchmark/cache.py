"""Networks on disk by the hash of their configuration; each is made once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robustkd.core.folders import Folder, refusal


@dataclass(frozen=True)
class Store:
    """A folder of folders, each complete or not there.

    Safe for several processes, and for several machines where they share the folder. A process
    that is killed leaves nothing that counts.
    """

    root: Path

    def fetch(self, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of that key; ``make`` fills it where it is missing, one process at a time.

        Raises:
            InputError: If a folder is a link, which may lead to files of others, or is not to be
                read or made.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            with Folder.at(self.root) as root:
                if not root.has(key):
                    self._make(root, key, make)
                root.inside(key).close()
        except OSError as error:
            raise refusal(self.root / key, error) from error
        return self.root / key

    def _make(self, root: Folder, key: str, make: Callable[[Path], None]) -> None:
        with root.locked(f"{key}.lock", seconds=math.inf):
            # A killed process of this key may have left one; of others, they may be at work.
            root.clean(key)
            if root.has(key):
                return
            partial = root.private(key)
            make(self.root / partial)
            os.rename(partial, key, src_dir_fd=root.descriptor, dst_dir_fd=root.descriptor)

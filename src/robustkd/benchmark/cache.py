"""Networks on disk by the hash of their configuration, made once whoever asks first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock


@dataclass(frozen=True)
class Store:
    """A folder of folders, each complete or not there.

    Safe for several processes, and for several machines where they share the folder. A process
    that is killed leaves nothing that counts.
    """

    root: Path

    def fetch(self, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of that key; ``make`` fills it where it is missing, one process at a time."""
        folder = self.root / key
        if folder.exists():
            return folder
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{key}.lock"):
            if not folder.exists():
                partial = self.root / f"{key}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                make(partial)
                partial.rename(folder)
        return folder

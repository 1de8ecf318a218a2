"""Flags of a command as they are written to the files of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from robustkd.core.known_names import is_folder


def recorded_flags(flags: Mapping[str, object]) -> dict[str, object]:
    """Return the flags that are set, with absolute paths, so that they are valid in any folder."""
    found: dict[str, object] = {}
    for name, value in flags.items():
        if value is None or (isinstance(value, tuple) and not value):
            continue
        if isinstance(value, Path) or (name == "data" and is_folder(str(value))):
            found[name] = os.path.abspath(str(value))
        elif isinstance(value, str):
            found[name] = str(value)
        else:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found

"""Flags of a command as they are written to the files of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from robustkd.core.known_names import is_folder

_NONE = {"clip_grad": "none"}
"""Word for None of flags with which None is not the default, but a value of its own."""


def recorded_flags(flags: Mapping[str, object]) -> dict[str, object]:
    """Return the flags that are set, with absolute paths, so that they are valid in any folder.

    >>> recorded_flags({"arch": None, "clip_grad": None})
    {'clip_grad': 'none'}
    """
    found: dict[str, object] = {}
    for name, given in flags.items():
        value = _NONE.get(name) if given is None else given
        if value is None or (isinstance(value, tuple) and not value):
            continue
        if isinstance(value, Path) or (name == "data" and is_folder(str(value))):
            found[name] = os.path.abspath(str(value))
        elif isinstance(value, str):
            found[name] = str(value)
        else:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found

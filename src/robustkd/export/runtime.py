"""Import of onnxruntime, which sends no data about its use.

Official builds from 1.29 on send the name of each file, hashes of its graph and weights, and an
identifier of the machine to the vendor, and keep a database in the user's cache folder, unless an
environment variable forbids it. They read the variable once, when they are imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Final

TELEMETRY: Final = {"ORT_DISABLE_TELEMETRY": "1"}
"""The environment variable that turns the telemetry off; a value that the user sets is kept."""


def load_onnxruntime() -> ModuleType:
    """Import onnxruntime without telemetry, and return it.

    If another part of the program has imported it before, its telemetry is as it was then.
    """
    with _variables():
        import onnxruntime as module
    return module  # type: ignore[no-any-return]


@contextmanager
def _variables() -> Iterator[None]:
    """Set the variables while the block lasts, except for those that are set."""
    added = [name for name in TELEMETRY if name not in os.environ]
    os.environ.update({name: TELEMETRY[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)

"""Protection against files in the working directory that Python or libraries would load."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SAFE_PATH = "PYTHONSAFEPATH"


@contextmanager
def safe_children() -> Iterator[None]:
    """Prevent child Python processes from importing modules of the working directory.

    ``python -c``, which `multiprocessing` uses to start processes, searches the working directory
    first: a file ``multiprocessing.py`` among downloads would run. A child of `multiprocessing`
    receives the parent's search path, so code that the user has named is still found.
    """
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before


@contextmanager
def elsewhere() -> Iterator[None]:
    """Make the root folder the working directory while the block lasts.

    Some libraries read settings or import modules from the working directory. The change affects
    all threads, so a block should be short.
    """
    before = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    os.chdir(Path.cwd().anchor)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)

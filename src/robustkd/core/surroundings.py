"""The working directory may hold files of a stranger: nothing there is imported or read unasked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SAFE_PATH = "PYTHONSAFEPATH"


@contextmanager
def safe_children() -> Iterator[None]:
    """Keep Python processes that are started in the block from importing the working directory.

    ``python -c``, with which `multiprocessing` starts its processes, searches modules there first:
    a file ``multiprocessing.py`` among downloads would run. What the parent imports from, a child
    of `multiprocessing` is told by its parent, so code that the user named is still found.
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

    For libraries that read settings or take modules from the working directory. It is changed for
    all threads, so a block should be short.
    """
    before = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    os.chdir(Path.cwd().anchor)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)

"""Starting Python processes whose modules never come from the working directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLE = "PYTHONSAFEPATH"


@contextmanager
def safe_module_path() -> Iterator[None]:
    """Keep the working directory out of the module path of processes started in the block.

    Worker processes that are not forked begin as ``python -c ...``, which searches the working
    directory first: a file named ``multiprocessing.py`` in a folder of downloads would be run.
    """
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


def leave_working_directory() -> None:
    """Take the working directory out of this process's module path and of those that it starts.

    Python puts it there for ``python -m``. Code of the user's own is still found in it, but after
    every installed module; see :class:`robustkd.models.OwnCode`.
    """
    os.environ[_VARIABLE] = "1"
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]

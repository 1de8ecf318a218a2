"""The one module that imports matplotlib, with settings of our own alone.

Matplotlib reads a file named ``matplotlibrc`` in the working directory when it is imported. Such a
file may come from somebody else; versions before 3.11 evaluate code in it. So the import happens
with an empty working directory, and figures are drawn with matplotlib's default settings.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _empty_working_directory() -> Iterator[None]:
    """Work in a new and empty folder while the block lasts."""
    before = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))  # it need not be readable
    try:
        with tempfile.TemporaryDirectory() as empty:
            os.chdir(empty)
            try:
                yield
            finally:
                os.fchdir(before)
    finally:
        os.close(before)


if "matplotlib" in sys.modules:  # imported by the user, whose settings are in force already
    import matplotlib as mpl
else:
    with _empty_working_directory():
        import matplotlib as mpl

from matplotlib import colormaps, image  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

__all__ = ["Axes", "Figure", "colormaps", "image", "our_style"]


@contextmanager
def our_style() -> Iterator[None]:
    """Draw with matplotlib's defaults, reproducible SVG and text as text while the block lasts."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"svg.hashsalt": "robustkd", "svg.fonttype": "none"})
        yield

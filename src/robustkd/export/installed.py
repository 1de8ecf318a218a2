"""Whether the packages of the extra ``export`` are there, asked before any work is done."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO

from robustkd.core.errors import UsageError

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_installed() -> None:
    """Refuse to begin without the packages that write and run ONNX files.

    Raises:
        UsageError: If one is missing.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"export needs the package {missing[0]}, which is not installed; "
            "pip install 'robustkd[export]'"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what other libraries print, log or warn about from the user, who cannot mend it."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

"""Check that the packages of the extra ``export`` are installed."""

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
    """Raise an error if a package that writes or runs ONNX files is missing.

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
    """Suppress output, log messages and warnings of other libraries that users cannot act on."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

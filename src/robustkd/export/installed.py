"""Check that the packages of the extra ``export`` are installed."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
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
    """Suppress output, log messages and warnings of other libraries that users cannot act on.

    Text on stderr is only suppressed if the block raises an error: torch prints its graph with
    source lines there before an error whose first line says the same. Otherwise it is printed at
    the end of the block, since the user's own code may have written it.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    errors = StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(errors):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
    sys.stderr.write(errors.getvalue())

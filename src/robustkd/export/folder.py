"""Creation of a folder that is complete or does not exist."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustkd.core.files import check_free, make_folder
from robustkd.core.folders import refusal


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder next to ``out``, and rename it to ``out`` if the block raises no error.

    Raises:
        UsageError: If ``out`` exists and holds anything.
        InputError: If it cannot be created; no temporary folder is left behind.
    """
    check_free(out)
    out = Path(os.path.abspath(out))
    make_folder(out.parent)
    partial = out.with_name(f".{out.name}.{secrets.token_hex(8)}.partial")
    try:
        make_folder(partial)
        yield partial
        os.replace(partial, out)
    except OSError as error:
        raise refusal(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)

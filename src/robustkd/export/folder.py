"""Creation of a folder that is complete, or does not exist or is empty."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from robustkd.core.errors import named
from robustkd.core.files import check_empty, check_free, locked, make_folder, open_folder
from robustkd.core.folders import LOCK, Folder, refusal


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a folder for files that become those of ``out`` if the block raises no error.

    A missing ``out`` is created by renaming that folder. An empty one stays the same folder, since
    it may be a link, or the working directory of the user's shell.

    Raises:
        UsageError: If ``out`` exists and holds anything.
        InputError: If it cannot be created, or is in use; no temporary folder is left behind.
    """
    check_free(out)
    try:
        with _filled(out) if out.is_dir() else _created(out) as partial:
            yield partial
    except OSError as error:
        raise refusal(out, error) from error


@contextmanager
def _created(out: Path) -> Iterator[Path]:
    """Yield a new folder next to ``out``, and rename it to ``out`` at the end."""
    given, out = out, Path(os.path.abspath(out))
    make_folder(out.parent)
    _remove_leftovers(out)
    partial = out.with_name(f".{out.name}.{secrets.token_hex(8)}.partial")
    try:
        make_folder(partial)
        # The lock tells the next export that this one is still at work.
        with open_folder(partial) as folder, locked(folder, seconds=0.0):
            with named(partial, given):
                yield partial
            folder.remove(LOCK)
            os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    """Remove the folders that killed exports to ``out`` left next to it.

    A folder that another process still fills is locked, and stays. So does one without a lock.
    """
    ours = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{16}}\.partial")
    with suppress(OSError), Folder.at(out.parent) as folder:
        for name in filter(ours.fullmatch, folder.names()):
            with suppress(OSError), folder.inside(name) as left:
                if left.has(LOCK):
                    with left.locked(seconds=0.0):
                        shutil.rmtree(name, ignore_errors=True, dir_fd=folder.descriptor)


@contextmanager
def _filled(out: Path) -> Iterator[Path]:
    """Yield a new folder in ``out``, and move its files to ``out`` at the end."""
    with open_folder(out) as folder, locked(folder, seconds=0.0):
        # Another process may have used the folder since the first check.
        check_empty(folder)
        folder.clean("export")
        partial = folder.private("export")
        moved: list[str] = []
        try:
            hidden = out.absolute() / partial
            with named(hidden, out):
                yield hidden
            check_empty(folder)
            with folder.inside(partial) as inner:
                for name in inner.names():
                    os.rename(name, name, src_dir_fd=inner.descriptor, dst_dir_fd=folder.descriptor)
                    moved.append(name)
        except BaseException:
            for name in moved:
                folder.remove(name)
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True, dir_fd=folder.descriptor)
            # The lock is not one of the files that are shipped.
            folder.remove(LOCK)

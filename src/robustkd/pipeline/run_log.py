"""The log file of a run: one line for each message of the package."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from robustkd.core.errors import printable
from robustkd.core.folders import Folder, refusal
from robustkd.pipeline.run_files import LOG

_log = logging.getLogger(__name__)


class _LogFile(logging.StreamHandler[TextIO]):
    """Log handler that ignores write errors, which other files of the run report."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        return printable(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        del record


@contextmanager
def logged(folder: Folder) -> Iterator[None]:
    """Write log messages of the package, and how the block ends, to the log in a folder."""
    try:
        descriptor = folder.append(LOG)
    except OSError as error:
        raise refusal(folder.path / LOG, error) from error
    file = _LogFile(os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace"))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers: list[logging.Handler] = [file]
    if not logging.getLogger().handlers and logging.lastResort is not None:
        handlers.append(logging.lastResort)  # which a handler of ours would silence
    logger = logging.getLogger("robustkd")
    level = logger.level
    logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
        _log.info("finished")
    except BaseException as error:
        # Not logged as an error: the caller that catches it reports it.
        _log.info("stopped: %s", str(error) or type(error).__name__)
        raise
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
        logger.setLevel(level)
        with suppress(OSError):  # what a full disk could not take
            file.stream.close()

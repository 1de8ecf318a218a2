"""Errors that are the user's or the machine's to solve; each kind has its exit code.

A message is one line with the wrong value, the expected values, and what to do.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

_FULL = (errno.ENOSPC, errno.EDQUOT)
_OF_THE_MACHINE = {
    _FULL: "the disk is full; make room",
    (errno.ENOMEM,): "memory ran out; end other programs, or use a larger machine",
    (errno.EMFILE, errno.ENFILE): "too many files are open; raise the limit (ulimit -n)",
    (errno.EAGAIN,): "no more processes can be started; raise the limit (ulimit -u)",
    (errno.EFBIG,): "files may not be as large as this one; raise the limit (ulimit -f)",
    (errno.EPIPE,): "the program that reads the output has ended",
}


class RobustKDError(Exception):
    """Base class of errors that users can correct; printed without a traceback."""

    exit_code: ClassVar[int] = 1


class UsageError(RobustKDError):
    """An argument is out of range, unknown, or in conflict with another argument."""

    exit_code = 2


class InputError(RobustKDError):
    """A file or folder is missing, damaged, or of another kind than expected."""

    exit_code = 3


class WriteError(InputError):
    """A file cannot be written: the disk is full, or the folder forbids it."""


class ThresholdError(RobustKDError):
    """A model misses a threshold that it must meet, such as agreement with its exported file."""

    exit_code = 5


class SuspicionError(RobustKDError):
    """There is evidence of a backdoor in a model."""

    exit_code = 4


class InconclusiveError(RobustKDError):
    """Neither a threshold is missed nor is there evidence, but the check could not decide."""

    exit_code = 6


class TrainingError(RobustKDError):
    """Training cannot continue: a loss is not finite, or a loss term has no gradient."""


def told(error: OSError | MemoryError | UnicodeError | RecursionError) -> str:
    """Return a one-line message for an error of file access that has no more specific message.

    The message distinguishes a fault of the file from a lack of space, memory or processes.

    >>> told(OSError(28, "No space left on device", "student.safetensors"))
    'student.safetensors: the disk is full; make room'
    >>> told(PermissionError(13, "Permission denied", "teacher.pt"))
    'teacher.pt: Permission denied; check the path and its permissions'
    """
    if isinstance(error, MemoryError):
        return "memory ran out; use a smaller batch, image size or network, or a larger machine"
    if isinstance(error, RecursionError):
        return "something that was read is nested too deep; check your files"
    if isinstance(error, UnicodeError):
        return "a file or a name is not in UTF-8; convert or rename it"
    name = error.filename if isinstance(error.filename, str) else ""
    if problem := _of_the_machine(error):
        return f"{name}: {problem}" if name else problem
    reason = error.strerror or str(error) or type(error).__name__
    return f"{name or 'a file'}: {reason}; check the path and its permissions"


def limit_to_raise(error: OSError) -> str:
    """Return what to do about an error of the system if it is not a lack of space; empty if it is.

    >>> limit_to_raise(OSError(27, "File too large")), limit_to_raise(OSError(28, "No space left"))
    ('raise the limit (ulimit -f)', '')
    """
    return "" if is_full(error) else _of_the_machine(error).partition("; ")[2]


def is_full(error: Exception) -> bool:
    """Return whether an error is a lack of space, by its number or, without one, by its message.

    >>> is_full(OSError(28, "x")), is_full(WriteError("x cannot be written: Permission denied"))
    (True, False)
    >>> is_full(WriteError("x cannot be written: No space left on device"))
    True
    """
    number = getattr(error, "errno", None)
    if number is not None:
        return number in _FULL
    return any(os.strerror(number) in str(error) for number in _FULL)


def temporary_advice(error: OSError, *, room: str = "set TMPDIR to another folder") -> str:
    """Return what to do about an error of the folder for temporary files.

    Args:
        error: The error.
        room: What to do instead of freeing space, if it is a lack of space.

    >>> temporary_advice(OSError(28, "No space left on device"))
    'free space in the folder for temporary files, or set TMPDIR to another folder'
    >>> temporary_advice(OSError(13, "Permission denied"))
    'check the folder for temporary files, or set TMPDIR to another folder'
    """
    if is_full(error):
        return f"free space in the folder for temporary files, or {room}"
    return limit_to_raise(error) or (
        "check the folder for temporary files, or set TMPDIR to another folder"
    )


def _of_the_machine(error: OSError) -> str:
    """Return a problem of the machine and what to do; empty for other errors."""
    # Readers use the number of a too large file for a limit of their own, with their own words.
    if error.errno == errno.EFBIG and error.strerror != os.strerror(errno.EFBIG):
        return ""
    problems = (text for numbers, text in _OF_THE_MACHINE.items() if error.errno in numbers)
    return next(problems, "")


@contextmanager
def named(private: Path, given: Path) -> Iterator[None]:
    """Let messages name the path that the user knows, in the place of a private one.

    Args:
        private: Path of a temporary folder, or of a copy.
        given: Path that the user has chosen.

    Raises:
        InputError: With the same type and message as that of the block, but for the path.
    """
    try:
        yield
    except InputError as error:
        if str(private) not in str(error):
            raise
        raise type(error)(str(error).replace(str(private), str(given))) from error


def printable(text: str) -> str:
    r"""Return a text on one line, with control characters escaped.

    >>> printable("cat\n\x1b[2J.png")
    'cat\\n\\x1b[2J.png'
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def quoted(text: str, most: int = 120) -> str:
    r"""Return a text in quotation marks, in ASCII, and cut after some characters.

    For names from files and folders that somebody else made: the result is safe to print.

    Args:
        text: Any text.
        most: Number of characters to keep.

    >>> quoted("cat\n\x1b[2J.png"), quoted("abcdef", most=3)
    ("'cat\\n\\x1b[2J.png'", "'abc...'")
    """
    return ascii(text if len(text) <= most else f"{text[:most]}...")


def first_line(error: Exception, most: int = 400) -> str:
    r"""First line of an exception's message, shortened; its type if there is no message.

    >>> first_line(ValueError("no header\nat byte 3")), first_line(MemoryError())
    ('no header', 'MemoryError')
    """
    return (str(error).splitlines() or [type(error).__name__])[0][:most]

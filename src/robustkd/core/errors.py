"""What can go wrong through no fault of the program; each kind has its exit code.

A message is one line: the bad value, what was expected, what to do.
"""

from __future__ import annotations

from typing import ClassVar


class RobustKDError(Exception):
    """A failure that the user can understand and mend; printed without a traceback."""

    exit_code: ClassVar[int] = 1


class UsageError(RobustKDError):
    """An argument is out of range, unknown, or at odds with another one."""

    exit_code = 2


class InputError(RobustKDError):
    """A file or folder is missing, damaged, or not what it was said to be."""

    exit_code = 3


class WriteError(InputError):
    """A file cannot be written: the disk is full, or the folder forbids it."""


class ThresholdError(RobustKDError):
    """A model misses a threshold that it must meet, such as agreement with its exported file."""

    exit_code = 5


class TrainingError(RobustKDError):
    """Training cannot go on: a loss that is not finite, or a term that does nothing."""


def printable(text: str) -> str:
    r"""Text on one line, with nothing in it that steers a terminal.

    >>> printable("cat\n\x1b[2J.png")
    'cat\\n\\x1b[2J.png'
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )

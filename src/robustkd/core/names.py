"""Checks of names that results contain, and suggestions for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_NAME = 120
"""Largest number of characters of a name in results."""


def unfit(name: object) -> str | None:
    r"""Return what is expected of a name that results cannot contain; None for a valid name.

    >>> unfit("cat\n"), unfit("\udcff"), unfit("cat")
    ('a printable name', 'a printable name', None)
    """
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        return "a printable name"
    if len(name) > LONGEST_NAME:
        return f"at most {LONGEST_NAME} characters"
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the part of an error message that suggests the nearest known name.

    >>> nearest("papers", ["paper", "default"])
    "did you mean 'paper'?"
    >>> nearest("zzz", ["paper", "default"])
    'expected one of paper, default'
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(names)}"

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


def nearest(name: str, known: Iterable[str], *, otherwise: str | None = None) -> str:
    """Return the part of an error message that suggests the name that was probably meant.

    Args:
        name: The unknown name.
        known: The known names.
        otherwise: Text to return if no known name is similar; by default, a list of all of them.

    >>> nearest("papers", ["paper", "default"])
    "did you mean 'paper'?"
    >>> nearest("zzz", ["paper", "default"])
    'expected one of paper, default'
    >>> nearest("zzz", ["paper", "default"], otherwise="see robustkd list")
    'see robustkd list'
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"expected one of {', '.join(names)}" if otherwise is None else otherwise

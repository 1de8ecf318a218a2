"""Suggestions for mistyped names, in one form everywhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the part of an error message that says which name was probably meant.

    >>> nearest("papers", ["paper", "default"])
    "did you mean 'paper'?"
    >>> nearest("zzz", ["paper", "default"])
    'expected one of paper, default'
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(names)}"

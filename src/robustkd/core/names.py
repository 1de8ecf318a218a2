"""Checks of names that results contain, and suggestions for mistyped names."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence

from robustkd.core.errors import UsageError

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


def composed(name: str) -> str:
    r"""Return a name in Unicode's composed form (NFC), in which equal texts are equal.

    macOS writes letters with accents as two characters, other systems usually as one.

    >>> composed("e\u0301") == "\u00e9"
    True
    """
    return unicodedata.normalize("NFC", name)


def as_found(names: Iterable[str], found: Sequence[str]) -> tuple[str, ...]:
    r"""Return names as they are spelled in a folder, where they differ only in Unicode's form.

    Args:
        names: Names, of which any may be missing in the folder.
        found: Names in the folder.

    >>> as_found(["\u00e9", "b"], ["e\u0301", "c"]) == ("e\u0301", "b")
    True
    """
    exact, spelled = set(found), {composed(name): name for name in found}
    return tuple(name if name in exact else spelled.get(composed(name), name) for name in names)


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


def check_options(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise an error for the name of a keyword argument that no setting has.

    Args:
        given: Names of the keyword arguments.
        known: Names that are accepted.

    Raises:
        UsageError: Naming the first unknown one, and the known name that is most similar.
    """
    names = list(known)
    for name in given:
        if name not in names:
            raise UsageError(f"unknown option {name!r}; {nearest(name, names)}")

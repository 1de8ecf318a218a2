"""The flags ``--target`` and ``--second-target``: the class that an attacker wants for images."""

from __future__ import annotations

from robustkd.core.errors import UsageError
from robustkd.core.names import composed
from robustkd.core.targets import NEXT, NEXT_WORDS, Target


def class_of(given: str, classes: tuple[str, ...]) -> int:
    """Return the class that ``--second-target`` gives by its name or by its number.

    Raises:
        UsageError: If there is no such class.
    """
    number = _number_of(given, [composed(each) for each in classes])
    if number is None:
        raise UsageError(
            f"--second-target is {given!a}; expected the name of a class, or 0 to "
            f"{len(classes) - 1}"
        )
    return number


def target_of(given: str, classes: tuple[str, ...]) -> Target:
    """Return the target that is given by the name of a class, by its number, or as ``next``.

    Names of classes may be given in any form of Unicode.

    >>> [target_of(given, ("dog", "cat")) for given in ("cat", "0", "next")]
    [1, 0, 'next']

    Raises:
        UsageError: If there is no such class, or ``next`` is the name of a class as well.
    """
    known = [composed(each) for each in classes]
    if given == NEXT and NEXT in known:
        raise UsageError(
            f"--target is {NEXT!r}, which is a class of the data and also means the next class of "
            f"each image; give {known.index(NEXT)} for the class; for the next class, rename it "
            "first"
        )
    if given == NEXT:
        return NEXT
    number = _number_of(given, known)
    if number is None:
        raise UsageError(
            f"--target is {given!a}; expected the name of a class, 0 to {len(classes) - 1}, or "
            f"{NEXT}"
        )
    return number


def _number_of(given: str, known: list[str]) -> int | None:
    """Return the number of a class; None if there is no such class."""
    if composed(given) in known:
        return known.index(composed(given))
    if given.isdecimal() and len(given) < 10 and int(given) < len(known):
        return int(given)
    return None


def counted(images: int | None, target: Target) -> str:
    """Return how many images an attack success rate counts, and which.

    >>> counted(90, 3)
    '90 triggered images of other classes'
    >>> counted(100, "next")
    '100 triggered images, classified as the next class of each image'
    """
    words = f", classified as {NEXT_WORDS}" if target == NEXT else " of other classes"
    return f"{images} triggered images{words}"

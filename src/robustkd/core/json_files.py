"""Reading JSON files of unknown origin as plain data of bounded size."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from robustkd.core.errors import InputError, quoted
from robustkd.core.trees import open_named

MOST_BYTES = 1 << 23
"""Largest file in bytes; lists of 20,000 class names with descriptions take about 3 MB."""

_LONGEST_NUMBER = 40


@dataclass(frozen=True, slots=True)
class ForeignObject:
    """A JSON object that somebody else wrote, with checked access to its values.

    A key that is missing, or has the value null, is read as None.

    Attributes:
        where: Name of the file and of the object in it, for messages.
        content: The object.
    """

    where: str
    content: dict[str, object]

    def __contains__(self, key: str) -> bool:
        return self.content.get(key) is not None

    def wrong(self, key: str, expected: str) -> InputError:
        """Return the error for a value of another kind than expected."""
        try:
            shown = quoted(json.dumps(self.content.get(key)), 60)[1:-1]
        except RecursionError:
            shown = "nested too deep"
        return InputError(
            f"{self.where}: {key} is {shown}; expected {expected}: correct the file, or move it "
            "away and give flags instead"
        )

    def inner(self, key: str) -> ForeignObject | None:
        """Return the object of a key.

        Raises:
            InputError: If it is none.
        """
        value = self.content.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return ForeignObject(f"{self.where}, {key}", value)

    def flag(self, key: str) -> bool | None:
        """Return the truth value of a key.

        Raises:
            InputError: If it is none.
        """
        value = self.content.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, known: Sequence[str] = ()) -> str | None:
        """Return the text of a key.

        Args:
            key: The key.
            known: Accepted texts; empty for all.

        Raises:
            InputError: If it is no text, or not one of the accepted ones.
        """
        value = self.content.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        if known and value not in known:
            raise self.wrong(key, " or ".join(known))
        return value

    def number(self, key: str, low: float | int, high: float | int) -> float | None:
        """Return the number of a key, which must be in a range.

        Raises:
            InputError: If it is no number, or out of range.
        """
        value = self.content.get(key)
        if value is None:
            return None
        if not is_number(value) or not low <= value <= high:
            raise self.wrong(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def numbers(self, key: str, low: float | int, high: float | int) -> tuple[float, ...]:
        """Return the numbers of a key, a list of one to four or a single one; empty if missing.

        Raises:
            InputError: If they are none, or out of range.
        """
        value = self.content.get(key)
        if value is None:
            return ()
        listed = value if isinstance(value, list) else [value]
        found = tuple(float(each) for each in listed if is_number(each) and low <= each <= high)
        if len(found) != len(listed) or not 1 <= len(found) <= 4:
            raise self.wrong(key, f"one number per channel, from {low:g} to {high:g}")
        return found


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a JSON value is a finite number; truth values are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def read_foreign_json(path: Path) -> ForeignObject:
    """Read a JSON object from a file of unknown origin.

    Args:
        path: The file; links on its path are checked as for a teacher.

    Raises:
        InputError: If it cannot be read, is larger than 8 MiB, is no JSON object, repeats a key,
            or has numbers that JSON does not allow.
    """
    try:
        with os.fdopen(open_named(path), "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        found = parse_foreign_json(content.decode("utf-8-sig"))
        if not isinstance(found, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError, RuntimeError) as error:
        strerror = getattr(error, "strerror", None)
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise InputError(
            f"{path} cannot be read as JSON: {quoted(strerror or reason, 100)[1:-1]}; correct it, "
            "or move it away and give flags instead"
        ) from error
    return ForeignObject(str(path), found)


def parse_foreign_json(text: str) -> object:
    """Parse JSON of unknown origin.

    Raises:
        ValueError: If it is no JSON, repeats a key, or has numbers that JSON does not allow.
        RecursionError: If it is nested too deep.
    """
    found: object = json.loads(
        text, object_pairs_hook=_once, parse_constant=_no_constant, parse_int=_short_int
    )
    return found


def _once(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it has the key {quoted(key, 40)} twice")
        found[key] = value
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"it has the number {name}")


def _short_int(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"it has a number of {len(text):,} digits")
    return int(text)

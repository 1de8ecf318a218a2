"""Checked access to the values of JSON objects in results, which may come from somebody else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from robustkd.core.errors import InputError, printable

LONGEST = 200
"""Number of characters of a name that are shown."""
_MOST = 2.0**53
_LARGEST = 1e30


@dataclass(frozen=True, slots=True)
class Reader:
    """Checked access to the values of one JSON object; ``where`` names it in messages."""

    where: str
    content: Mapping[str, object]

    def wrong(self, key: str, value: object, expected: str) -> InputError:
        """Return an error that names file, key and value."""
        shown = json.dumps(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return InputError(f"{self.where}.{printable(key)} is {shown}; expected {expected}")

    def inner(self, key: str) -> Reader:
        """Return the reader of an object; an empty one if the key is missing."""
        value = self.content.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return Reader(f"{self.where}.{printable(key)[:LONGEST]}", value)

    def items(self, key: str) -> list[object]:
        """Return a list; an empty one if the key is missing."""
        value = self.content.get(key, [])
        if not isinstance(value, list):
            raise self.wrong(key, value, "a list")
        return value

    def number(self, key: str) -> float:
        """Return a finite number."""
        value = self.content.get(key)
        return self._number(key, value, -_LARGEST, _LARGEST, "a finite number")

    def share(self, key: str) -> float:
        """Return a fraction in [0, 1]."""
        return self._number(key, self.content.get(key), 0.0, 1.0, "a fraction in [0, 1]")

    def text(self, key: str) -> str:
        """Return a text without control characters, cut if it is long; empty if it is missing."""
        value = self.content.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(key, value, "a text")
        return printable(value)[:LONGEST]

    def numbers(self, key: str) -> list[float]:
        """Return a list of finite numbers."""
        places = enumerate(self.items(key))
        return [
            self._number(f"{key}[{i}]", value, -_LARGEST, _LARGEST, "a finite number")
            for i, value in places
        ]

    def count(self, key: str) -> int | None:
        """Return a whole number of at least 0; None if the key is missing."""
        value = self.content.get(key)
        return None if value is None else self._count(key, value)

    def counts(self, key: str) -> list[int]:
        """Return a list of whole numbers of at least 0."""
        return [self._count(f"{key}[{i}]", value) for i, value in enumerate(self.items(key))]

    def all_counts(self) -> dict[str, int]:
        """Return all values, which are whole numbers of at least 0."""
        return {
            printable(key)[:LONGEST]: self._count(key, value) for key, value in self.content.items()
        }

    def _count(self, key: str, value: object) -> int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        number = self._number(key, value, 0.0, _MOST, "a whole number of at least 0")
        if not whole:
            raise self.wrong(key, value, "a whole number of at least 0")
        return int(number)

    def _number(self, key: str, value: object, low: float, high: float, expected: str) -> float:
        # True is an int, and NaN fails every comparison.
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not isinstance(value, int | float) or not numeric or not low <= value <= high:
            raise self.wrong(key, value, expected)
        return float(value)

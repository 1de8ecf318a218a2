"""Checks of numeric arguments."""

from __future__ import annotations

import math

from robustkd.core.errors import UsageError


def check_positive(**values: float | int) -> None:
    """Raise an error for an argument that is not a finite number above zero.

    Raises:
        UsageError: Naming the first that is not.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            expected = "a finite number" if value == math.inf else "more than 0"
            raise UsageError(f"{name} is {value}; expected {expected}")


def check_not_negative(**values: float | int) -> None:
    """Raise an error for an argument that is not a finite number of at least zero.

    Raises:
        UsageError: Naming the first that is not.
    """
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} is {value}; expected at least 0")

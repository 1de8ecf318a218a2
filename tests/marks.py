"""Parametrisation in which some values are tested by `make test-slow` alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow(*values: object) -> Any:
    """The values of one case, which only `make test-slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_but(quick: Collection[object], values: Iterable[object]) -> list[Any]:
    """All values, of which only the quick ones are part of `make test`."""
    return [value if value in quick else slow(value) for value in values]

"""The class that an attacker wants for an image: one class for all, or the next one for each.

This module needs no torch, so that the command line and the report start quickly. Functions on
labels are in :mod:`robustkd.core.triggers`.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

Target: TypeAlias = int | Literal["next"]
"""Index of one target class, or :data:`NEXT`."""

NEXT: Final = "next"
"""All-to-all: images of class k are to be classified as class k + 1, and those of the last class as
class 0."""

NEXT_WORDS = "the next class of each image"
"""Name of :data:`NEXT` in texts, where one target class has its own name."""

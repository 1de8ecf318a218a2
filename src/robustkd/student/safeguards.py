"""Published defences within a distillation; a new one is one file and one row here."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from robustkd.core.errors import UsageError
from robustkd.core.names import nearest
from robustkd.student.renewal import BCU
from robustkd.student.retrospection import ABD
from robustkd.student.safeguard import Safeguard


@dataclass(frozen=True)
class SafeguardRow:
    """One row of the registry.

    Attributes:
        settings: Hyperparameters, a frozen dataclass; its method ``start`` makes the safeguard.
        source: Authors, venue and year.
    """

    settings: BCU | ABD
    source: str


SAFEGUARDS: dict[str, SafeguardRow] = {
    "bcu": SafeguardRow(BCU(), "Pang et al., CVPR 2023"),
    "abd": SafeguardRow(ABD(), "Hong et al., ICML 2023"),
}
"""Defences within a distillation by name; methods name them."""


def start_safeguard(name: str, image_shape: tuple[int, int, int], *, seed: int) -> Safeguard | None:
    """Start the safeguard of a method; None if it names none.

    Args:
        name: A row of :data:`SAFEGUARDS`, or empty.
        image_shape: Channels, height and width of the images.
        seed: Seed of everything random.

    Raises:
        UsageError: If the name is unknown; the message suggests the nearest one.
    """
    return _row(name).settings.start(image_shape, seed=seed) if name else None


def stated_safeguard(name: str) -> dict[str, object]:
    """Return name and settings of a safeguard, which identify stored results, as JSON values."""
    return {"name": name, **asdict(_row(name).settings)}


def _row(name: str) -> SafeguardRow:
    if name not in SAFEGUARDS:
        raise UsageError(f"unknown safeguard {name!r}; {nearest(name, SAFEGUARDS)}")
    return SAFEGUARDS[name]

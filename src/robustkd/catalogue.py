"""What there is, read from the tables themselves."""

from __future__ import annotations

from robustkd.attacks import ATTACKS
from robustkd.data import PICTURES, SOURCES
from robustkd.losses import LOSSES
from robustkd.models import FAMILIES
from robustkd.presets import PRESETS


def catalogue() -> dict[str, dict[str, str]]:
    """Kind to name to one line, in the order of the tables."""
    return {
        "data": {name: _first_line(load.__doc__) for name, load in {**SOURCES, **PICTURES}.items()},
        "models": {
            family.usage: f"{name}, e.g. {', '.join(family.examples)}"
            for name, family in FAMILIES.items()
        },
        "methods": {name: preset.summary for name, preset in PRESETS.items()},
        "losses": dict(LOSSES),
        "attacks": {name: row.summary for name, row in ATTACKS.items()},
    }


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0].rstrip(".")

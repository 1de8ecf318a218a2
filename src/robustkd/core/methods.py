"""Named ways to make a student, each a fixed combination of the parts.

A preset says what is cleaned, what is imitated and what is withstood. How long and how fast a
student learns is not part of it, so that presets can be compared at equal cost.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from robustkd.core.errors import UsageError

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Preset:
    """One way to make a student.

    Attributes:
        summary: One line on it.
        losses: Distillation losses by weight; empty for a student without a teacher.
        detox: Arguments of :func:`robustkd.teacher.defences.detoxification.detoxify`; None to
            trust the teacher.
        hardening: Arguments of :class:`robustkd.student.hardening.UniversalPerturbations`; None
            for none.
    """

    summary: str
    losses: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    detox: Mapping[str, Any] | None = None
    hardening: Mapping[str, Any] | None = None


# The budget is the 3 to 4 points of accuracy that the paper reports as its price.
_PAPER: Mapping[str, Any] = MappingProxyType(
    {"cap": 0.2, "ratio": "stage", "accuracy_budget": 0.035}
)
# How it was chosen: docs/results/default.md. 0.2 is the largest mask of published triggers; copies
# that imitate the teacher as well cost more time or accuracy than copies that keep their labels.
_HARDENING: Mapping[str, Any] = MappingProxyType(
    {"epsilon": 0.2, "mass": 0.05, "share": 1.0, "distilled": False}
)
# By soft targets alone, copies to the end that shall keep their label cost accuracy: they fade, and
# shall only not go where they are led to. Beside OFD they cost little to begin with.
_FADING: Mapping[str, Any] = MappingProxyType({**_HARDENING, "recovered": False, "fade": 0.5})
# At its full weight, OFD outweighs what the perturbations teach; beside it, logits give accuracy.
_MIX: Mapping[str, float] = MappingProxyType({"kd": 1.0, "ofd": 0.3})

PRESETS: dict[str, Preset] = {
    "no-teacher": Preset("labels alone, no teacher"),
    "ofd": Preset("ordinary feature distillation (OFD)", losses={"ofd": 1.0}),
    "kd": Preset("ordinary logit distillation (soft targets)", losses={"kd": 1.0}),
    "mix": Preset("ordinary soft targets and OFD, the losses of default", losses=_MIX),
    "paper": Preset(
        "detoxified teacher, then OFD, as in arXiv 2406.03409",
        losses={"ofd": 1.0},
        detox=_PAPER,
    ),
    "paper-0.9": Preset(
        "paper, its masks up to 0.9 and not 0.2: the largest cap of its runs",
        losses={"ofd": 1.0},
        detox={**_PAPER, "cap": 0.9},
    ),
    "default": Preset(
        "soft targets and OFD into a student hardened against universal perturbations",
        losses=_MIX,
        hardening=_HARDENING,
    ),
    "default-kd": Preset(
        "soft targets into a student hardened against universal perturbations",
        losses={"kd": 1.0},
        hardening=_FADING,
    ),
    "both": Preset(
        "detoxified teacher as in paper, hardened student as in default",
        losses=_MIX,
        detox=_PAPER,
        hardening=_HARDENING,
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UsageError: If there is none; the nearest name is told.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(PRESETS)}"
    raise UsageError(f"unknown method {name!r}; {hint}")

"""Families of triggers whose parameters are learned, one row each.

A family maps parameters in [-1, 1] to a trigger. The strength bounds the trigger; a strength of 1
is the largest change that does not change what a person recognises in the image. The bounds of
smooth fields hold at their control points; see
:func:`robustkd.data.transformations.smooth` for the points between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from robustkd.attacks.triggers.additive import Additive
from robustkd.attacks.triggers.patterns import MaskedPattern
from robustkd.attacks.triggers.transformations import (
    Affine,
    ColourMatrix,
    Composition,
    Filter,
    Flow,
    LightField,
    LowFrequency,
    ToneCurve,
)
from robustkd.core.errors import UsageError
from robustkd.core.types import Trigger

Shape: TypeAlias = tuple[int, int, int]

_GRID = 4
_KNOTS = 8
_KERNEL = 5
_PATCH = 6
"""The edge of a patch is that of the image divided by this, about as for BadNets at 32 pixels."""


@dataclass(frozen=True)
class TriggerFamily:
    """A family of triggers with parameters in [-1, 1].

    Attributes:
        summary: Description in one line: what the trigger changes, and its bound at strength 1.
        shape: Function from the shape of images (channels, height, width) to the shape of the
            parameters.
        trigger: Function from parameters, shape of images and strength above 0 to a trigger. Its
            output is differentiable with respect to the parameters.
        image_wide: If True, the family is an attack of its own in the table of attacks; False for
            additions and patches, which other attacks learn.
    """

    summary: str
    shape: Callable[[Shape], Shape]
    trigger: Callable[[Tensor, Shape, float], Trigger]
    image_wide: bool = True


def _affine(parameters: Tensor, _image: Shape, strength: float) -> Trigger:
    bound = torch.tensor([0.2, 0.2, 0.1], device=parameters.device)
    return Affine(strength * bound * parameters)


def _patch(parameters: Tensor, image: Shape, strength: float) -> Trigger:
    edge = max(2, round(strength * min(image[1:]) / _PATCH))
    mask = torch.zeros(image)
    mask[:, -edge - 1 : -1, -edge - 1 : -1] = 1
    return MaskedPattern(mask, (parameters + 1) / 2)


TRIGGER_FAMILIES: dict[str, TriggerFamily] = {
    "flow": TriggerFamily(
        "smooth warp, control points moved by at most 7 % of the image's edge",
        lambda _: (2, _GRID, _GRID),
        lambda u, image, strength: Flow(0.07 * strength * min(image[1:]) * u),
    ),
    "affine": TriggerFamily(
        "rotation, shear and scale by at most 0.2, translation by at most 5 % of the edge",
        lambda _: (1, 2, 3),
        _affine,
    ),
    "tone": TriggerFamily(
        "tone curve of all channels, a change of at most 0.35",
        lambda _: (1, 1, _KNOTS),
        lambda u, _, strength: ToneCurve(0.35 * strength * u),
    ),
    "colour": TriggerFamily(
        "colour matrix and constant colour, entries of at most 0.25",
        lambda image: (1, image[0], image[0] + 1),
        lambda u, _, strength: ColourMatrix(0.25 * strength * u),
    ),
    "light": TriggerFamily(
        "smooth field of gain and offset, at most 0.3 at control points",
        lambda _: (2, _GRID, _GRID),
        lambda u, _, strength: LightField(0.3 * strength * u),
    ),
    "filter": TriggerFamily(
        "5 x 5 kernel, entries changed by at most 0.15",
        lambda _: (1, _KERNEL, _KERNEL),
        lambda u, _, strength: Filter(0.15 * strength * u),
    ),
    "patch": TriggerFamily(
        "opaque square in the corner, a sixth of the edge wide",
        lambda image: image,
        _patch,
        image_wide=False,
    ),
    "smooth": TriggerFamily(
        "smooth additive pattern, at most 0.25 at control points",
        lambda image: (image[0], _GRID, _GRID),
        lambda u, _, strength: LowFrequency(0.25 * strength * u),
    ),
    "additive": TriggerFamily(
        "additive pattern of at most 0.1",
        lambda image: image,
        lambda u, _, strength: Additive((0.1 * strength * u).clamp(-1, 1)),
        image_wide=False,
    ),
}


def families_of(names: str) -> tuple[TriggerFamily, ...]:
    """Return the families of a name such as ``tone`` or ``flow+tone``, in order of application.

    Raises:
        UsageError: If a name is unknown, or there are more than two.
    """
    parts = names.split("+")
    unknown = next((part for part in parts if part not in TRIGGER_FAMILIES), None)
    if unknown is not None or len(parts) > 2:
        raise UsageError(
            f"family is {names!r}; expected one of {', '.join(TRIGGER_FAMILIES)}, or two of them "
            "joined by '+'"
        )
    return tuple(TRIGGER_FAMILIES[part] for part in parts)


def compose(triggers: tuple[Trigger, ...]) -> Trigger:
    """Combine one or two triggers into one trigger that applies them in order."""
    return triggers[0] if len(triggers) == 1 else Composition(*triggers)

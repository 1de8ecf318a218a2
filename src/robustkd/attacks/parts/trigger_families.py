"""Families of triggers whose parameters are learned, one row each.

A family maps parameters in [-1, 1] to a trigger. Its strength bounds the trigger; a strength of 1
stands for the largest change at which a person still sees the same picture.
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
"""A patch covers a square of about a sixth of the image's edge, as BadNets does at 32 pixels."""


@dataclass(frozen=True)
class TriggerFamily:
    """A kind of trigger with parameters in [-1, 1].

    Attributes:
        summary: One line that says what the trigger changes, and the bound at strength 1.
        shape: Shape of the parameters for images of a shape (channels, height, width).
        trigger: The trigger of some parameters, for images of a shape and a strength above 0.
            Gradients flow from its output to the parameters.
        image_wide: False for additions and patches, which other attacks learn as well.
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
        "smooth warp by at most 7 % of the image's edge",
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
        "smooth field of gain and offset of at most 0.3",
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
        "smooth additive pattern of at most 0.25",
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
    """The families of a name such as ``tone`` or ``flow+tone``, in order of application.

    Raises:
        UsageError: If a name is not in the table, or there are more than two.
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
    """One trigger that applies one or two triggers in order."""
    return triggers[0] if len(triggers) == 1 else Composition(*triggers)

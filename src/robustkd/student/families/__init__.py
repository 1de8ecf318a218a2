"""Families of universal transformations that hardening trains the student against.

A new family is one function and one row of :data:`FAMILIES`. Names joined by ``+``, such as
``warp+generator``, make a composition with members of its own, which are learned together. The
bounds are chosen so that a person still recognises the image; no bound was chosen with triggered
images. Those of smooth fields (flow, light, smooth, and the flow of a warp) hold at the control
points; see :func:`robustkd.data.transformations.smooth` for the points between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.core.names import nearest
from robustkd.core.types import Images
from robustkd.data import transformations
from robustkd.student.families.bounded import Bounded, Chain, Family, Shape, members_of
from robustkd.student.families.generator import generator
from robustkd.student.families.perturbations import Ball, Patch, onto_mass
from robustkd.student.families.photometric import photometric
from robustkd.student.families.trial import check_family

__all__ = [
    "FAMILIES",
    "Ball",
    "Bounded",
    "Chain",
    "Family",
    "Patch",
    "make_family",
    "members_of",
    "onto_mass",
    "stage_of",
]

_GRID = 4
_KNOTS = 8
_KERNEL = 5


@dataclass(frozen=True)
class FamilyRow:
    """One family.

    Attributes:
        summary: What it changes, and by how much at most.
        make: Function that makes the family for a number of classes and a shape of images
            (channels, height, width).
        stage: Place in a composition: 0 moves pixels, 1 changes their values.
    """

    summary: str
    make: Callable[[int, Shape, torch.Generator], nn.Module]
    stage: int = 1


def _by_matrix(
    change: Callable[[Images, Tensor], Images], images: Images, parameters: Tensor
) -> Images:
    """Change images by parameters that are N x rows x columns, stored as N x 1 x rows x columns."""
    return change(images, parameters[:, 0])


def _flow(classes: int, image: Shape, random: torch.Generator) -> Bounded:
    limit = 0.07 * min(image[1:])
    return Bounded(classes, (2, _GRID, _GRID), limit, transformations.flow, random)


def _affine(classes: int, _image: Shape, random: torch.Generator) -> Bounded:
    limit = torch.tensor([0.25, 0.25, 0.125])
    return Bounded(classes, (1, 2, 3), limit, partial(_by_matrix, transformations.affine), random)


def _tone(classes: int, _image: Shape, random: torch.Generator) -> Bounded:
    change = partial(_by_matrix, transformations.tone_curve)
    return Bounded(classes, (1, 1, _KNOTS), 0.35, change, random)


def _curves(classes: int, image: Shape, random: torch.Generator) -> Bounded:
    change = partial(_by_matrix, transformations.tone_curve)
    return Bounded(classes, (1, image[0], _KNOTS), 0.35, change, random)


def _light(classes: int, _image: Shape, random: torch.Generator) -> Bounded:
    return Bounded(classes, (2, _GRID, _GRID), 0.3, transformations.light_field, random)


def _filter(classes: int, _image: Shape, random: torch.Generator) -> Bounded:
    change = partial(_by_matrix, transformations.filtered)
    return Bounded(classes, (1, _KERNEL, _KERNEL), 0.15, change, random)


def _colour(classes: int, image: Shape, random: torch.Generator) -> Bounded:
    channels = image[0]
    change = partial(_by_matrix, transformations.colour_matrix)
    return Bounded(classes, (1, channels, channels + 1), 0.25, change, random)


def _smooth(classes: int, image: Shape, random: torch.Generator) -> Bounded:
    return Bounded(classes, (image[0], _GRID, _GRID), 0.25, transformations.low_frequency, random)


FAMILIES: dict[str, FamilyRow] = {
    "generator": FamilyRow(
        "small network for colours, light and texture, a change of at most 0.35",
        lambda classes, image, random: generator(classes, image[0], 0.35, random),
    ),
    "photometric": FamilyRow(
        "tone curves, gain, offset and a filter, a change of at most 0.35",
        lambda classes, image, random: photometric(classes, image[0], 0.35, random),
    ),
    "warp": FamilyRow(
        "rotation, shear, scale and translation, then a smooth flow",
        lambda classes, image, random: Chain(
            _affine(classes, image, random), _flow(classes, image, random)
        ),
        stage=0,
    ),
    "flow": FamilyRow(
        "smooth flow, control points moved by at most 7 % of the image's edge", _flow, stage=0
    ),
    "affine": FamilyRow(
        "rotation, shear, scale by 0.25, translation by 6 % of the edge", _affine, stage=0
    ),
    "tone": FamilyRow("tone curve, a change of at most 0.35", _tone),
    "light": FamilyRow("smooth field of gain and offset, at most 0.3 at control points", _light),
    "curves": FamilyRow("tone curve for each channel, a change of at most 0.35", _curves),
    "colour": FamilyRow("matrix of the colour channels, entries changed by at most 0.25", _colour),
    "filter": FamilyRow("5 x 5 kernel, entries changed by at most 0.15", _filter),
    "smooth": FamilyRow("smooth addition, at most 0.25 at control points", _smooth),
}
"""Families of transformations by name; additions and patterns have bounds of their own."""
_OF_THIS_PACKAGE = dict(FAMILIES)


def make_family(name: str, classes: int, image: Shape, random: torch.Generator) -> nn.Module:
    """Make a family by its name.

    Args:
        name: A row of :data:`FAMILIES`, or several joined by ``+``, which are applied in this
            order.
        classes: Number of classes.
        image: Channels, height and width of the images.
        random: Generator of the initial parameters.

    Raises:
        UsageError: If there is none; the message suggests the nearest name. Also if a family that
            users have added does not map images to images, or cannot be learned.
    """
    parts = [row.make(classes, image, random) for row in _rows_of(name)]
    for part, row, made in zip(name.split("+"), _rows_of(name), parts, strict=True):
        if row is not _OF_THIS_PACKAGE.get(part):
            check_family(made, part, image)
    return parts[0] if len(parts) == 1 else Chain(*parts)


def stage_of(name: str) -> int:
    """Return the stage of a family; a composition has the stage of its first part."""
    return _rows_of(name)[0].stage


def _rows_of(name: str) -> list[FamilyRow]:
    """Return the rows of a name whose parts are joined by ``+``.

    Raises:
        UsageError: If a part is unknown; the message suggests the nearest name.
    """
    parts = name.split("+")
    for part in parts:
        if part not in FAMILIES:
            raise UsageError(f"unknown family {part!r}; {nearest(part, FAMILIES)}")
    return [FAMILIES[part] for part in parts]

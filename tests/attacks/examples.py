"""One trigger of every kind in the table, so that a new row is tested by being there."""

from __future__ import annotations

from dataclasses import MISSING, fields

import torch
from torch import Tensor

from robustkd.attacks import TRIGGERS, Trigger

SHAPE = (3, 12, 10)
PARAMETERS = {
    "flow": (2, 4, 4),
    "affine": (1, 2, 3),
    "tone-curve": (1, 1, 8),
    "colour-matrix": (1, 3, 4),
    "light-field": (2, 4, 4),
    "filter": (1, 5, 5),
    "low-frequency": (3, 4, 4),
}
"""Shapes of the parameters of transformations; those of other kinds are planes of pixels."""


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def example(kind: str, shape: tuple[int, int, int] = SHAPE) -> Trigger:
    """Defaults where a field has one, and random parameters where it has none."""
    cls = TRIGGERS[kind]
    required = [field.name for field in fields(cls) if field.default is MISSING]
    scale = 0.3 if kind in PARAMETERS else 1.0
    size = PARAMETERS.get(kind, shape)
    return cls(**{name: scale * pixels(*size, seed=seed) for seed, name in enumerate(required)})

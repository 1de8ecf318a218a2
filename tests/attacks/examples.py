"""One trigger of every kind in the table, so that a new row is tested by being there."""

from __future__ import annotations

from dataclasses import MISSING, fields

import torch
from torch import Tensor

from robustkd.attacks import TRIGGERS, Trigger

SHAPE = (3, 12, 10)


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def example(kind: str, shape: tuple[int, int, int] = SHAPE) -> Trigger:
    """Defaults where a field has one, and a random plane of pixels where it has none."""
    cls = TRIGGERS[kind]
    required = [field.name for field in fields(cls) if field.default is MISSING]
    return cls(**{name: pixels(*shape, seed=seed) for seed, name in enumerate(required)})

"""Checking that a teacher fits the data before any training."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from robustkd.core.errors import InputError
from robustkd.core.types import DataSource, Split
from robustkd.training.inference import accuracy_on, finite_on
from robustkd.training.metrics import Proportion

_NEAR_CHANCE = 0.1
_SEEN: dict[Split, str] = {"validation": "validation", "train": "training"}


def check_accuracy(teacher: nn.Module, clean: DataSource, path: Path) -> Proportion:
    """Stop before hours of training when preprocessing or classes are not the teacher's."""
    for split, images in _SEEN.items():
        if not finite_on(teacher, clean, split):
            raise InputError(
                f"{path} gives outputs that are not finite on the {images} images of "
                f"{clean.name}; expected weights that have been trained on such images: give those"
            )
    chance = 1 / len(clean.classes)
    found = accuracy_on(teacher, clean, "validation")
    if found.value < chance + _NEAR_CHANCE * (1 - chance):
        raise InputError(
            f"{path} is right on only {found.value:.1%} of the validation images of {clean.name}, "
            f"near chance ({chance:.1%}): are these its classes, in its order, its kind of images, "
            "and its --mean and --std?"
        )
    return found

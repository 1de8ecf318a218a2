"""Distil a small, accurate student from a teacher network that you do not trust.

The names below load when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustkd.data import load as load_data
    from robustkd.detox import DetoxifiedTeacher, detoxify
    from robustkd.distillation import distill
    from robustkd.errors import InputError, RobustKDError, TrainingError, UsageError
    from robustkd.harden import UniversalPerturbations
    from robustkd.models import build, load, load_teacher, save

_HOME = {
    "DetoxifiedTeacher": ("robustkd.detox", "DetoxifiedTeacher"),
    "InputError": ("robustkd.errors", "InputError"),
    "RobustKDError": ("robustkd.errors", "RobustKDError"),
    "TrainingError": ("robustkd.errors", "TrainingError"),
    "UniversalPerturbations": ("robustkd.harden", "UniversalPerturbations"),
    "UsageError": ("robustkd.errors", "UsageError"),
    "build": ("robustkd.models", "build"),
    "detoxify": ("robustkd.detox", "detoxify"),
    "distill": ("robustkd.distillation", "distill"),
    "load": ("robustkd.models", "load"),
    "load_data": ("robustkd.data", "load"),
    "load_teacher": ("robustkd.models", "load_teacher"),
    "save": ("robustkd.models", "save"),
}

__all__ = [
    "DetoxifiedTeacher",
    "InputError",
    "RobustKDError",
    "TrainingError",
    "UniversalPerturbations",
    "UsageError",
    "build",
    "detoxify",
    "distill",
    "load",
    "load_data",
    "load_teacher",
    "save",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'robustkd' has no attribute {name!r}")
    module, attribute = _HOME[name]
    value: object = getattr(import_module(module), attribute)
    return value

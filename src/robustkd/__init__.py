"""Distil a small, accurate student from a teacher network that you do not trust.

The names below load when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustkd.data import load as load_data
    from robustkd.detox import detoxify
    from robustkd.distillation import distill
    from robustkd.errors import InputError, RobustKDError, TrainingError, UsageError
    from robustkd.harden import UniversalPerturbations
    from robustkd.masking import DetoxifiedTeacher, load_detoxified, save_detoxified
    from robustkd.models import Spec, build, load, load_teacher, save

_HOME = {
    "DetoxifiedTeacher": ("robustkd.masking", "DetoxifiedTeacher"),
    "InputError": ("robustkd.errors", "InputError"),
    "RobustKDError": ("robustkd.errors", "RobustKDError"),
    "Spec": ("robustkd.models", "Spec"),
    "TrainingError": ("robustkd.errors", "TrainingError"),
    "UniversalPerturbations": ("robustkd.harden", "UniversalPerturbations"),
    "UsageError": ("robustkd.errors", "UsageError"),
    "build": ("robustkd.models", "build"),
    "detoxify": ("robustkd.detox", "detoxify"),
    "distill": ("robustkd.distillation", "distill"),
    "load": ("robustkd.models", "load"),
    "load_data": ("robustkd.data", "load"),
    "load_detoxified": ("robustkd.masking", "load_detoxified"),
    "load_teacher": ("robustkd.models", "load_teacher"),
    "save": ("robustkd.models", "save"),
    "save_detoxified": ("robustkd.masking", "save_detoxified"),
}

__all__ = [
    "DetoxifiedTeacher",
    "InputError",
    "RobustKDError",
    "Spec",
    "TrainingError",
    "UniversalPerturbations",
    "UsageError",
    "build",
    "detoxify",
    "distill",
    "load",
    "load_data",
    "load_detoxified",
    "load_teacher",
    "save",
    "save_detoxified",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'robustkd' has no attribute {name!r}")
    module, attribute = _HOME[name]
    value: object = getattr(import_module(module), attribute)
    return value

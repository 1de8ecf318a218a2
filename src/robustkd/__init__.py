"""Distil a small, accurate student from a teacher network that you do not trust.

The names below are loaded when they are first used, so that importing the package is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustkd import attacks as attacks
    from robustkd import data as data
    from robustkd import models as models
    from robustkd import report as report
    from robustkd.core.errors import (
        InputError,
        RobustKDError,
        ThresholdError,
        TrainingError,
        UsageError,
        WriteError,
    )
    from robustkd.data import Reading, from_dataset
    from robustkd.data import load as load_data
    from robustkd.evaluation.audit import audit
    from robustkd.export import export_student
    from robustkd.models import Spec, build, load, save
    from robustkd.pipeline.api import run
    from robustkd.student.distillation import distill
    from robustkd.student.found import find_perturbations
    from robustkd.student.hardening import UniversalPerturbations
    from robustkd.teacher.defences.detoxification import detoxify
    from robustkd.teacher.defences.masks import DetoxifiedTeacher, load_detoxified, save_detoxified
    from robustkd.teacher.read import load_teacher

_HOME = {
    "DetoxifiedTeacher": ("robustkd.teacher.defences.masks", "DetoxifiedTeacher"),
    "InputError": ("robustkd.core.errors", "InputError"),
    "Reading": ("robustkd.data", "Reading"),
    "RobustKDError": ("robustkd.core.errors", "RobustKDError"),
    "Spec": ("robustkd.models", "Spec"),
    "ThresholdError": ("robustkd.core.errors", "ThresholdError"),
    "TrainingError": ("robustkd.core.errors", "TrainingError"),
    "UniversalPerturbations": ("robustkd.student.hardening", "UniversalPerturbations"),
    "UsageError": ("robustkd.core.errors", "UsageError"),
    "WriteError": ("robustkd.core.errors", "WriteError"),
    "audit": ("robustkd.evaluation.audit", "audit"),
    "build": ("robustkd.models", "build"),
    "detoxify": ("robustkd.teacher.defences.detoxification", "detoxify"),
    "distill": ("robustkd.student.distillation", "distill"),
    "export_student": ("robustkd.export", "export_student"),
    "find_perturbations": ("robustkd.student.found", "find_perturbations"),
    "from_dataset": ("robustkd.data", "from_dataset"),
    "load": ("robustkd.models", "load"),
    "load_data": ("robustkd.data", "load"),
    "load_detoxified": ("robustkd.teacher.defences.masks", "load_detoxified"),
    "load_teacher": ("robustkd.teacher.read", "load_teacher"),
    "run": ("robustkd.pipeline.api", "run"),
    "save": ("robustkd.models", "save"),
    "save_detoxified": ("robustkd.teacher.defences.masks", "save_detoxified"),
}

_PACKAGES = ("attacks", "data", "models", "report")
"""Packages with names that pages and docstrings write as ``robustkd.models.OwnCode``."""

__all__ = [
    "DetoxifiedTeacher",
    "InputError",
    "Reading",
    "RobustKDError",
    "Spec",
    "ThresholdError",
    "TrainingError",
    "UniversalPerturbations",
    "UsageError",
    "WriteError",
    "audit",
    "build",
    "detoxify",
    "distill",
    "export_student",
    "find_perturbations",
    "from_dataset",
    "load",
    "load_data",
    "load_detoxified",
    "load_teacher",
    "run",
    "save",
    "save_detoxified",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        return import_module(f"robustkd.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'robustkd' has no attribute {name!r}")
    module, attribute = _HOME[name]
    value: object = getattr(import_module(module), attribute)
    return value

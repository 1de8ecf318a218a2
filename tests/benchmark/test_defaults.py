"""Defaults that results depend on, but names of cells do not, are recorded here.

Constants of modules do so as well, and are not here.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from robustkd.attacks import ATTACKS, Teaching
from robustkd.attacks.parts import bilevel
from robustkd.benchmark import load_grid
from robustkd.benchmark.cells import digest
from robustkd.core.method_settings import DetoxSettings
from robustkd.student.distillation import distill
from robustkd.student.hardening import UniversalPerturbations
from robustkd.teacher.defences.detoxification import detoxify
from robustkd.training.config import TrainingConfig
from robustkd.training.loop import fit

FILE = Path(__file__).with_name("defaults.json")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def arguments(call: Any) -> dict[str, Any]:
    parameters = inspect.signature(call).parameters.items()
    return {name: p.default for name, p in parameters if p.default is not inspect.Parameter.empty}


def settings(made: Any) -> dict[str, Any]:
    return {field.name: field.default for field in fields(made) if field.default is not MISSING}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that JSON can hold; of an object with fields, its own."""
    kinds = (int, float, str, type(None))
    return {
        name: plain(vars(value)) if is_dataclass(value) else value
        for name, value in values.items()
        if isinstance(value, kinds) or is_dataclass(value)
    }


def found() -> dict[str, dict[str, Any]]:
    return {
        "distill": plain(settings(TrainingConfig) | arguments(distill)),
        "detoxify": plain(settings(DetoxSettings) | arguments(detoxify)),
        "fit": plain(settings(TrainingConfig) | arguments(fit)),
        "hardening": plain(arguments(UniversalPerturbations)),
        "teaching": plain(settings(Teaching)),
        **{f"attack {name}": plain(vars(row.attack)) for name, row in ATTACKS.items()},
        **{f"scar {name}": asdict(work) for name, work in bilevel.PRESETS.items()},
    }


def test_no_default_changes_unnoticed():
    """Where one does: raise the revision of the attack or of the cells, and write it here.

    A new argument whose default changes nothing is only written down.
    """
    assert json.loads(json.dumps(found())) == json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["compact", "caps", "digits"])
def test_a_grid_whose_settings_replace_those_of_the_method_keeps_its_results(name):
    known = {digest(cell.configuration()) for cell in load_grid(BENCHMARKS / f"{name}.yaml")}
    cells = list((BENCHMARKS / "results" / name / "cells").glob("*.json"))
    assert cells
    assert {cell.name.rsplit(".", 2)[1] for cell in cells} <= known

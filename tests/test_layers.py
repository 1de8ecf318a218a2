"""What the public names promise, and that no defence has a place for an attacker's secret."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys

import pytest

import robustkd


def isolated(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_package_costs_nothing():
    isolated(
        "import sys, robustkd\n"
        "heavy = {'torch', 'numpy', 'accelerate', 'robustkd.core.types'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )


@pytest.mark.parametrize("name", robustkd.__all__)
def test_every_public_name_is_there_and_documented(name):
    found = getattr(robustkd, name)
    assert found.__name__ == name or callable(found)
    assert inspect.getdoc(found)


def test_dir_lists_the_public_names():
    assert dir(robustkd) == sorted(robustkd.__all__)


def test_unknown_names_are_attribute_errors():
    assert robustkd.__all__ == sorted(robustkd.__all__)
    with pytest.raises(AttributeError, match=r"^module 'robustkd' has no attribute 'destill'$"):
        robustkd.destill  # noqa: B018 (the access itself fails)


@pytest.mark.slow
def test_distill_is_the_function_whatever_is_imported_before():
    isolated(
        "import robustkd.student.distillation, robustkd.models, robustkd.data\n"
        "import robustkd.teacher.defences.detoxification\n"
        "import robustkd.cli, robustkd.pipeline.run, robustkd.benchmark\n"
        "import inspect, robustkd\n"
        "from robustkd import distill\n"
        "assert robustkd.distill is distill is robustkd.student.distillation.distill\n"
        "assert all(not inspect.ismodule(getattr(robustkd, n)) for n in robustkd.__all__)"
    )


SECRETS = re.compile("trigger|target|attack|poison|backdoor", re.IGNORECASE)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("teacher.defences.detoxification", "detoxify"),
        ("teacher.defences.masks", "DetoxifiedTeacher"),
        ("teacher.defences.detoxification", "DetoxRecord"),
        ("student.distillation", "distill"),
        ("student.distillation", "Distilled"),
        ("student.hardening", "UniversalPerturbations"),
        ("student.objective", "Objective"),
        ("pipeline.student", "make_student"),
        ("pipeline.run", "distill_file"),
        ("pipeline.student", "Made"),
        ("core.methods", "Method"),
    ],
)
def test_no_defence_has_a_place_for_a_secret(module, name):
    defence = getattr(importlib.import_module(f"robustkd.{module}"), name)
    for parameter in inspect.signature(defence).parameters.values():
        assert not SECRETS.search(parameter.name)
        assert not SECRETS.search(str(parameter.annotation))

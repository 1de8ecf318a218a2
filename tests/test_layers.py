"""The public names, and that no defence takes a secret of the attacker."""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

import robustkd
from robustkd.student.safeguards import SAFEGUARDS
from robustkd.teacher.defences.registry import DEFENCES


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
    assert callable(found)
    assert inspect.getdoc(found)


FUNCTIONS = [name for name in robustkd.__all__ if name.islower()]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example_that_runs_by_itself(name):
    """The suite runs the example among the names of its module; it must not need any of them."""
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(getattr(robustkd, name)))
    assert examples
    nodes = list(ast.walk(ast.parse("".join(example.source for example in examples))))
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    variables = [node for node in nodes if isinstance(node, ast.Name)]
    assigned = {variable.id for variable in variables if isinstance(variable.ctx, ast.Store)}
    used = {variable.id for variable in variables}
    assert "robustkd" in used
    assert used <= imported | assigned | set(dir(builtins))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_error_of_a_public_function_is_public(name):
    raised = re.findall(r"^ +(\w+Error):", inspect.getdoc(getattr(robustkd, name)), re.MULTILINE)
    assert raised
    assert set(raised) <= set(robustkd.__all__)


def test_dir_lists_the_public_names():
    assert dir(robustkd) == sorted(robustkd.__all__)


def test_exactly_the_public_names_are_loaded_on_first_use():
    assert set(robustkd._HOME) == set(robustkd.__all__)


@pytest.mark.parametrize(
    "name",
    ["attacks.TwoTriggers", "data.CropFlip", "models.OwnCode", "report.write_html"],
)
def test_names_of_packages_that_pages_write_in_full_need_no_other_import(name):
    isolated(f"import robustkd; robustkd.{name}")


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
PUBLIC = [name for name in robustkd.__all__ if name.islower() and name != "export_student"]
INTERNAL = [
    ("teacher.defences.detoxification", "DetoxRecord"),
    ("teacher.defences.masks", "DetoxifiedTeacher"),
    ("student.distillation", "Distilled"),
    ("student.hardening", "UniversalPerturbations"),
    ("student.objective", "DistillationObjective"),
    ("pipeline.student", "make_student"),
    ("pipeline.run", "distill_file"),
    ("pipeline.job", "DistillJob"),
    ("pipeline.student", "Made"),
    ("core.methods", "Method"),
]


def no_secret(takes: Callable[..., object]) -> None:
    for parameter in inspect.signature(takes).parameters.values():
        assert not SECRETS.search(parameter.name)
        assert not SECRETS.search(str(parameter.annotation))


@pytest.mark.parametrize("name", DEFENCES)
def test_no_defence_takes_a_secret(name):
    defence = type(DEFENCES[name].defence)
    no_secret(defence)
    no_secret(defence.__call__)


@pytest.mark.parametrize("name", SAFEGUARDS)
def test_no_defence_within_the_training_takes_a_secret(name):
    settings = SAFEGUARDS[name].settings
    safeguard = type(settings.start((1, 8, 8), seed=0))
    for takes in (type(settings), settings.start, safeguard, safeguard.prepare, safeguard.loss):
        no_secret(takes)


@pytest.mark.parametrize("name", PUBLIC)
def test_no_public_function_takes_a_secret(name):
    """Except for the export, which measures the attack success rate of a finished student."""
    no_secret(getattr(robustkd, name))


@pytest.mark.parametrize(("module", "name"), INTERNAL)
def test_no_part_of_the_pipeline_takes_a_secret(module, name):
    no_secret(getattr(importlib.import_module(f"robustkd.{module}"), name))

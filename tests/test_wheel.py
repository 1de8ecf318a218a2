"""The installed wheel works without the repository, and dependencies are declared."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

RUN = """
from pathlib import Path

import robustkd
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

digits = robustkd.load_data("digits")
teacher = robustkd.build(robustkd.Spec("wrn-10-1", 10, digits.image_shape), seed=0)
fit(Supervised(teacher), digits, epochs=2)
robustkd.save(teacher, Path("teacher.safetensors"))
made = robustkd.run(
    "teacher.safetensors", "digits", "wrn-10-1", arch="wrn-10-1", epochs=1, out="run"
)
assert (made.folder / "report.html").is_file()
assert robustkd.load(made.folder / "student.safetensors").spec.classes == 10
assert 0 <= made.results.runs[-1].acc <= 1
assert "site-packages" in robustkd.__file__
"""


def declared(requirements: list[str]) -> set[str]:
    """The names of the distributions that requirements name, in their normal form."""
    return {normal(re.split(r"[\[<>=!~; ]", one)[0]) for one in requirements}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> dict[str, set[str]]:
    """Every package outside the standard library that the shipped code imports, with its files."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                found.setdefault(name.partition(".")[0], set()).add(path.name)
    known = {*sys.stdlib_module_names, "robustkd"}
    return {name: files for name, files in found.items() if name not in known}


def test_every_package_that_is_imported_is_declared():
    distributions = packages_distributions()
    requirements = [*PROJECT["dependencies"]]
    for extra in ("hf", "export", "ray"):
        requirements += EXTRAS[extra]
    allowed = declared(requirements)
    for package, files in imported().items():
        names = {normal(name) for name in distributions.get(package, [package])}
        assert names & allowed, f"{package} is imported by {files} and not declared"


def test_every_package_that_is_declared_is_imported():
    distributions = packages_distributions()
    used = {normal(name) for package in imported() for name in distributions.get(package, [])}
    # The digits are read from scikit-learn's files, which does not need its slow import.
    assert declared(PROJECT["dependencies"]) - used == {"scikit-learn"}
    # What other packages need at run time: torch exports ONNX through onnxscript.
    assert declared(EXTRAS["export"]) - used == {"onnxscript"}


def test_the_lower_bounds_in_the_security_policy_are_those_of_the_package():
    bounds = {}
    for text in (*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)):
        name, *version = re.split(r">=|<|,", text)
        bounds[normal(name)] = version[0] if version else ""
    page = (ROOT / "SECURITY.md").read_text().split("## How to report")[0]
    rows = re.findall(r"^\| ([a-z][a-z0-9, -]*) \| ([0-9][0-9., ]*) \|", page, re.MULTILINE)
    assert len(rows) > 10
    for names, versions in rows:
        for name, version in zip(names.split(", "), versions.split(", "), strict=True):
            assert bounds[normal(name)] == version, name


def test_the_docs_give_a_reason_for_every_dependency():
    page = (ROOT / "docs/install.md").read_text()
    for extra in (PROJECT["dependencies"], *EXTRAS.values()):
        for name in declared(extra):
            assert re.search(rf"^\|.*`{name}`", page, re.MULTILINE | re.IGNORECASE), name


@pytest.mark.slow
def test_a_wheel_works_in_an_environment_of_its_own(tmp_path):
    """Build, install with the declared dependencies alone, list, and one epoch of a run."""

    def command(*words: str) -> str:
        # -I: neither the checkout nor PYTHONPATH may lend a package.
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    command(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", str(ROOT), "-w", "dist")
    (wheel,) = (tmp_path / "dist").glob("robustkd-*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert "robustkd/py.typed" in names
    for template in ("report.html.j2", "report.css.j2", "MODEL_CARD.md.j2"):
        assert f"robustkd/report/templates/{template}" in names
    assert not any(name.startswith(("tests/", "tools/", "docs/")) for name in names)

    command(sys.executable, "-m", "venv", "bare")
    python = str(tmp_path / "bare" / "bin" / "python")
    command(python, "-m", "pip", "install", "--quiet", str(wheel))
    listed = command(str(tmp_path / "bare" / "bin" / "robustkd"), "list")
    assert "additions-kd" in listed
    (tmp_path / "use.py").write_text(RUN)
    command(python, "-I", "use.py")
    listed = command(python, "-m", "pip", "list", "--format", "freeze")
    installed = {normal(line.partition("==")[0]) for line in listed.splitlines()}
    assert not installed & declared(["pytest", "ruff", "mypy", "ray", "onnx", "datasets"])

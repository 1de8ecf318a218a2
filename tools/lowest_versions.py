"""Install the lowest versions that pyproject.toml allows, and run a part of the tests with them.

    python -m tools.lowest_versions build/lowest

Direct dependencies are installed at their lower bounds, indirect ones at the newest version that
fits. The folder receives a new virtual environment, which replaces what was there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("hf", "export", "ray")
TESTING = ("pytest", "hypothesis", "beartype")
TESTS = (
    "tests/core",
    "tests/models/test_serialization.py",
    "tests/report",
    "tests/data/images/test_decode.py",
    "tests/data/images/test_budgets.py",
    "tests/data/sources/test_hub.py",
    "tests/teacher/untrusted/test_readers.py",
    "tests/pipeline/test_run_folder.py",
    "tests/pipeline/test_seal.py",
    "tests/cli/test_distilling.py::test_distill_as_a_process_then_evaluate",
    "tests/cli/test_hostile_working_directory.py",
    "tests/export/test_export.py",
)
# The pytest plugin of the lowest jaxtyping does not accept the options in pyproject.toml.
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:jaxtyping", "-o")


def main() -> None:
    """Create the environment, print the versions in it, and run the tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    venv.create(folder, clear=True, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    uv, pins = [str(folder / "bin" / "uv"), "pip"], str(folder / "lowest.txt")
    extras = [part for extra in EXTRAS for part in ("--extra", extra)]
    compiled = ["--resolution", "lowest-direct", "--no-annotate", "--no-header", *extras]
    compiled += ["--python", python, "--quiet", "--output-file", pins, "pyproject.toml"]
    subprocess.run([*uv, "compile", *compiled], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    install = [*uv, "install", "--quiet", "--python", python]
    subprocess.run([*install, "--requirement", pins, *TESTING], cwd=ROOT, check=True)
    subprocess.run([*install, "--no-deps", "--editable", "."], cwd=ROOT, check=True)
    sys.stdout.write(Path(pins).read_text(encoding="utf-8"))
    sys.stdout.flush()
    command = [python, "-m", "pytest", *OPTIONS, "addopts=--strict-markers -m 'not slow'", *TESTS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    sys.exit(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()

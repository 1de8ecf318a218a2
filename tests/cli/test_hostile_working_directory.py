"""Hostile files in the working directory are neither imported nor used as settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import robustkd
from tests.marks import slow, slow_but

IMPORTED = ("multiprocessing", "concurrent", "json", "torch", "numpy", "cloudpickle", "tempfile")
SOURCE = str(Path(robustkd.__file__).parents[1])


@pytest.fixture
def canary(tmp_path) -> Path:
    """Modules that leave a trace where they are imported, in a working directory."""
    folder, canary = tmp_path / "downloads", tmp_path / "canary"
    folder.mkdir()
    for name in IMPORTED:
        (folder / f"{name}.py").write_text(f"open({str(canary)!r}, 'a').write({name!r} + ' ')\n")
    return canary


def run(canary: Path, code: str) -> str:
    """Run code as an installed command is run: a file in a folder for commands."""
    command = canary.parent / "bin" / "command"
    command.parent.mkdir(exist_ok=True)
    command.write_text(code)
    done = subprocess.run(
        [sys.executable, str(command)],
        cwd=canary.parent / "downloads",
        env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        | {"PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert not canary.exists(), canary.read_text()
    assert done.returncode == 0, done.stderr
    return done.stdout


POOL = """
if __name__ == "__main__":
    from pathlib import Path
    from robustkd.benchmark.executors import executor
    print(list(executor("{kind}", workers=2)({groups}, Path("out"), Path("cache"))))
"""


@pytest.mark.slow
def test_workers_of_the_benchmark_import_nothing_from_it(canary):
    # A group of no cells: its process starts, imports what it needs, and has nothing to do.
    assert run(canary, POOL.format(kind="local", groups="[[]]")) == "[[]]\n"


@pytest.mark.slow
def test_workers_of_ray_import_nothing_from_it(canary):
    code = """
    from types import SimpleNamespace
    import ray
    from pathlib import Path
    from robustkd.benchmark import executors, ray_cluster

    def found(group, out, cache):
        import json, multiprocessing, sys, torch
        from robustkd.benchmark.records import run_group
        return [module.__file__ for module in (json, torch)]

    ray_cluster.run_group = found
    cell = SimpleNamespace(teacher=SimpleNamespace(setting=SimpleNamespace(threads=1)))
    (files,) = executors.executor("ray")([[cell]], Path("out"), Path("cache"))
    print(*files)
    """
    code = 'if __name__ == "__main__":' + code
    assert "downloads" not in run(canary, code)


@pytest.mark.parametrize("method", slow_but(("spawn",), ("fork", "spawn", "forkserver")))
def test_workers_that_decode_import_nothing_from_it(method, canary, tmp_path):
    for name in ("a", "b"):
        for k in range(4):
            path = tmp_path / "data" / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 60 * k, np.uint8)).save(path)
    code = f"""
if __name__ == "__main__":
    import multiprocessing
    from pathlib import Path
    multiprocessing.set_start_method({method!r})
    from robustkd.data import Reading, load_folder
    source = load_folder(Path({str(tmp_path / "data")!r}), Reading(streaming=True, workers=1))
    print(sum(len(batch.labels) for batch in source.batches("train", batch_size=3)))
"""
    assert run(canary, code) == "4\n"


def test_the_reader_of_a_teacher_imports_nothing_from_it(canary, tmp_path):
    code = f"""
from pathlib import Path
from robustkd import models
from robustkd.teacher.untrusted.quarantine import read
path = Path({str(tmp_path / "m.safetensors")!r})
models.save(models.build(models.Spec("wrn-10-1", 3, (3, 8, 8)), seed=0), path)
print(read(path).verdict.format)
"""
    assert run(canary, code) == "safetensors\n"


def test_the_commands_start_safe_processes_and_keep_the_environment(monkeypatch):
    from robustkd import cli

    monkeypatch.setenv("PYTHONSAFEPATH", "")
    seen = []
    monkeypatch.setattr(
        "robustkd.cli.catalogue.catalogue", lambda: seen.append(os.environ["PYTHONSAFEPATH"]) or {}
    )
    cli.main(["list"])
    assert seen == ["1"]
    assert os.environ["PYTHONSAFEPATH"] == ""


# Settings of matplotlib.

CHART = """
from robustkd.report.figures import bars, scatter
from robustkd.report.aggregate import Row, Statistic
acc, asr = (Statistic(mean, None, 1, mean, mean) for mean in (0.9, 0.1))
row = Row("data", "pair", "attack", "default", 10, acc, asr, None, acc)
print(bars([row], "acc"), scatter([row]))
"""
SETTINGS = """
text.usetex: True
font.size: 40
axes.prop_cycle: cycler('color', ['r', 'g']) * cycler('lw', [1, 2])
savefig.dpi: 9999
path.effects: None
axes.facecolor: red
backend: module://evil
"""


@pytest.mark.parametrize("place", ["matplotlibrc", slow("MATPLOTLIBRC"), slow("a later import")])
def test_charts_ignore_settings_in_the_working_directory(place, canary, tmp_path, monkeypatch):
    downloads = canary.parent / "downloads"
    (downloads / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    plain = run(canary, CHART)
    code = CHART
    if place == "matplotlibrc":
        (downloads / place).write_text(SETTINGS)
    elif place == "MATPLOTLIBRC":
        (tmp_path / "settings").write_text("font.size: 40\naxes.facecolor: red\n")
        monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path / "settings"))
    else:
        code = "import matplotlib; matplotlib.rcParams['font.size'] = 40\n" + CHART
        code += "assert matplotlib.rcParams['font.size'] == 40\n"
    assert run(canary, code) == plain


def test_settings_in_the_working_directory_are_not_even_read(canary):
    os.mkfifo(canary.parent / "downloads" / "matplotlibrc")
    assert "<svg" in run(canary, CHART)


def test_the_working_directory_is_the_same_after_the_import(canary):
    (canary.parent / "downloads" / "matplotlibrc").write_text("font.size: 40\n")
    code = "import os; here = os.getcwd(); import robustkd.report.figures\n"
    assert run(canary, code + "print(here == os.getcwd())") == "True\n"

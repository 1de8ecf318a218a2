"""Commands that run in a folder of downloads: no file in it is run or obeyed as a setting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = ("multiprocessing", "torch", "yaml", "json", "matplotlib", "numpy", "tensorboard", "ray")
SMOKE = """
data: {digits: {train: 100, validation: 20, test: 20}}
pairs: [[wrn-10-1, wrn-10-1]]
attacks: {badnets: {}}
methods: [no-teacher]
seeds: [0]
teaching: {epochs: 1, batch_size: 50}
training: {epochs: 1, batch_size: 50}
"""


@pytest.fixture
def downloads(tmp_path) -> Path:
    """A folder whose files would leave a mark if they were run, or stop the report."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name in MODULES:
        mark = tmp_path / f"{name} was run"
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    (folder / "matplotlibrc").write_text("text.usetex: True\nsavefig.dpi: 100000\n")
    (folder / "grid.yaml").write_text(SMOKE)
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    return subprocess.run(
        [*command],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def marks(folder: Path) -> list[str]:
    return [path.name for path in folder.parent.iterdir() if path.name.endswith("was run")]


def test_worker_processes_run_no_module_of_the_working_directory(downloads):
    command = Path(sys.executable).with_name("robustkd")
    done = run(downloads, str(command), "bench", "grid.yaml", "--out", "results", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert marks(downloads) == []
    assert (downloads / "results" / "acc-asr.svg").exists()


def test_figures_ignore_the_working_directory_s_settings(downloads):
    code = (
        "import os\n"
        "from robustkd.report.plotting import Figure, our_style\n"
        "with our_style():\n"
        "    figure = Figure(figsize=(1, 1))\n"
        "    figure.add_subplot().set_title('title')\n"
        "    figure.savefig('figure.svg')\n"
        "assert os.path.exists('matplotlibrc')\n"
        "assert 'title' in open('figure.svg').read()\n"
    )
    done = run(downloads, sys.executable, "-P", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_robustkd_cli_runs_no_module_of_the_working_directory(downloads):
    """Python itself finds the package first, so this holds from our first line on."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['robustkd', 'list']\n"
        "runpy.run_module('robustkd.cli', run_name='__main__')\n"
    )
    for name in ("json", "multiprocessing"):
        (downloads / f"{name}.py").unlink()  # Python's own start needs them
    done = run(downloads, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert not {"torch was run", "yaml was run"} & set(marks(downloads))

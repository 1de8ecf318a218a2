"""What is said before torch is imported, and in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import ENVIRONMENT, distilling, refused, shell

pytestmark = pytest.mark.usefixtures("few_digits")


def python(code: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        text=True,
        cwd=cwd,
        env=ENVIRONMENT,
    )


def test_help_and_version_need_no_torch(tmp_path):
    code = (
        "import sys; from robustkd.cli import main\n"
        "for flags in (['--help'], ['distill', '--help'], ['--version'], []): main(flags)\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'matplotlib', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = python(code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("demo", "distill", "evaluate", "list", "--arch", "--json", "\n0."):
        assert word in done.stdout


def test_a_mistyped_name_is_refused_without_torch(tmp_path):
    known = ["distill", "t", "--arch", "wrn-10-1", "--out", "run"]
    student, digits = ["--student", "wrn-10-1"], ["--data", "digits"]
    mistakes = [
        [*known, *digits, "--student", "wrn-10-l"],
        [*known, *digits, *student, "--method", "defualt"],
        [*known, *digits, *student, "--defence", "ftsam"],
        [*known, *student, "--data", "digit"],
        ["attack", "badnets", "--arch", "wrn-10-l", *digits, "--out", "attack"],
        ["auditt"],
    ]
    code = (
        "import sys; from robustkd.cli import main\n"
        f"for words in {mistakes}:\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert end.code == 2\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'matplotlib', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = python(code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    said = done.stderr.splitlines()
    assert [line.count("did you mean") + line.count("Did you mean") for line in said] == [1] * 6


def test_mistakes_as_processes_leave_no_traceback(files, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").touch()
    refused(
        shell(*distilling(files.teacher), cwd=tmp_path),
        2,
        "output folder run is not empty; give a new one with --out",
    )
    said = shell("evaluate", cwd=tmp_path)
    refused(
        said, 2, 'Command "evaluate" parameter MODEL requires an argument. (see robustkd --help)'
    )

"""An export sends no data about its use, and keeps no identifier of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustkd.export.latency import running
from robustkd.export.runtime import TELEMETRY, load_onnxruntime

_EXPORT = """
import robustkd
data = robustkd.load_data("digits", train=100, validation=100, test=100)
student = robustkd.build(robustkd.Spec("wrn-10-1", 10, data.image_shape), seed=0)
robustkd.export_student(student, data, "shipped")
"""
_NO_TELEMETRY = {"CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_RUNNING_UNIT_TESTS", *TELEMETRY}
"""Variables with which onnxruntime sends nothing in any case."""


def left_by_telemetry(folder: Path) -> list[str]:
    """Return the files of onnxruntime's telemetry in a folder."""
    return [str(path) for path in folder.rglob("*") if path.name == ".ses" or ".onnx" in str(path)]


@pytest.fixture
def apart(tmp_path) -> dict[str, str]:
    """Variables of a process whose home and temporary files are in a folder of their own."""
    kept = {name: value for name, value in os.environ.items() if name not in _NO_TELEMETRY}
    for name in ("home", "cache", "tmp"):
        (tmp_path / "own" / name).mkdir(parents=True)
    return {
        **kept,
        "HOME": str(tmp_path / "own" / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "own" / "cache"),
        "TMPDIR": str(tmp_path / "own" / "tmp"),
    }


def test_an_export_leaves_no_files_of_telemetry(apart, tmp_path):
    command = [sys.executable, "-c", _EXPORT]
    subprocess.run(command, check=True, cwd=tmp_path, env=apart, timeout=300)
    assert (tmp_path / "shipped" / "export.json").is_file()
    assert left_by_telemetry(tmp_path / "own") == []


def test_the_process_that_measures_latencies_leaves_none(exported, apart, tmp_path, monkeypatch):
    for name in {*os.environ, *apart}:
        monkeypatch.delenv(name, raising=False)
    for name, value in apart.items():
        monkeypatch.setenv(name, value)
    running(exported.folder / "student.onnx", seconds=0.1)
    assert left_by_telemetry(tmp_path / "own") == []


@pytest.mark.parametrize("value", [None, "0"])
def test_the_variables_of_the_user_are_as_before(value, monkeypatch):
    (name,) = TELEMETRY
    if value is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, value)
    load_onnxruntime()
    assert os.environ.get(name) == value

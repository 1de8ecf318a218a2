"""Properties of the machine, and errors of the process that measures latency."""

from __future__ import annotations

import pytest

from robustkd.core.environment import usable_cores
from robustkd.core.errors import RobustKDError
from robustkd.export.latency import running
from robustkd.export.machine import machine

INTEL = """processor\t: 0
model name\t: Some CPU @ 3.00GHz
flags\t\t: fpu sse2 avx2 avx512_vnni amx_int8

processor\t: 1
model name\t: another
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n"


@pytest.mark.parametrize(
    ("text", "int8", "vnni"),
    [
        (INTEL, ["avx512_vnni", "amx_int8"], True),
        (ARM, ["asimddp", "i8mm"], False),
        ("model name : x\n", None, None),
    ],
)
def test_instructions_for_bytes_are_those_of_the_cpu(tmp_path, text, int8, vnni):
    (tmp_path / "cpuinfo").write_text(text)
    found = machine(tmp_path / "cpuinfo")
    assert (found["int8_instructions"], found["vnni"]) == (int8, vnni)
    assert found["cores"] == usable_cores() >= 1


def test_the_model_is_that_of_the_first_core(tmp_path):
    (tmp_path / "cpuinfo").write_text(INTEL)
    assert machine(tmp_path / "cpuinfo")["cpu"] == "Some CPU @ 3.00GHz"
    assert machine(tmp_path / "none")["cpu"]


def test_a_file_that_cannot_be_timed_is_reported_in_one_line(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(RobustKDError, match=r"^x\.onnx cannot be timed: [^\n]+$"):
        running(tmp_path / "x.onnx", seconds=0.01)

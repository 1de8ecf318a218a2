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
ARM = """processor\t: 0
Features\t: fp asimd asimddp i8mm
CPU implementer\t: 0x41
CPU part\t: 0xd0c
"""


@pytest.mark.parametrize(
    ("text", "int8", "vnni"),
    [
        (INTEL, ["avx512_vnni", "amx_int8"], True),
        (ARM, ["asimddp", "i8mm"], None),
        ("model name : x\nflags : fpu avx2\n", [], False),
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


def test_an_arm_cpu_is_named_by_its_board_and_its_numbers(tmp_path):
    (tmp_path / "cpuinfo").write_text(ARM)
    found = machine(tmp_path / "cpuinfo", tmp_path / "none")
    assert found["cpu"] == "CPU implementer 0x41, CPU part 0xd0c"
    (tmp_path / "board").write_bytes(b"Some Board Rev 1.4\0")
    found = machine(tmp_path / "cpuinfo", tmp_path / "board")
    assert found["cpu"] == "Some Board Rev 1.4, CPU implementer 0x41, CPU part 0xd0c"


def test_a_file_that_cannot_be_timed_is_reported_in_one_line(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(RobustKDError, match=r"^x\.onnx cannot be timed: [^\n]+$"):
        running(tmp_path / "x.onnx", seconds=0.01)

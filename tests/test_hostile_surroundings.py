"""Hostile files and folders around a command end it in one line, and harm nothing."""

from __future__ import annotations

import sys

import pytest

from tests.hostile_surroundings import CASES, Case, attempt, prepare
from tests.marks import slow

pytestmark = [
    pytest.mark.usefixtures("few_digits"),
    pytest.mark.skipif(sys.platform != "linux", reason="devices and limits of Linux"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("made"))


EXPENSIVE = ("1,000,000", "8192")
# Their kinds have tests of their own, or a quick case of the same kind stays.
REPEATED = (
    "working directory:",
    *(f"{name} is a link to a file" for name in (".lock", "config.yaml", "run.json", "seal.json")),
    *(f"{name} is a FIFO" for name in ("config.yaml", "seal.json", "checkpoint.safetensors")),
    *(f"{name} is a link to /dev/zero" for name in ("config.yaml", "run.json", "seal.json")),
    "a step that is text",
    "momentum of another shape",
)


@pytest.mark.parametrize(
    "case",
    [
        slow(case) if any(part in case.name for part in EXPENSIVE + REPEATED) else case
        for case in CASES
    ],
    ids=lambda case: case.name,
)
def test_hostile_surroundings_end_in_one_line(case: Case, made, tmp_path):
    ending = attempt(case, tmp_path, made)
    assert (ending.code, case.says in ending.message) == (case.code, True), ending
    assert ending.message.isprintable()
    assert ending.seconds < 100
    assert ending.peak_mib < 2048

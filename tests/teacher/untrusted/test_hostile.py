"""Every hostile teacher file: exit code 3, one line, nothing done, little time and memory."""

from __future__ import annotations

import os
import pickle

import pytest

from tests.marks import slow_but
from tests.teacher.untrusted.attempt import distil, left_behind
from tests.teacher.untrusted.hostile import CASES
from tests.teacher.untrusted.samples import text_pickle

MOST_SECONDS, MOST_MIB = 60, 320


@pytest.mark.parametrize("name", slow_but(CASES.keys() - {"safetensors of 100,000 tensors"}, CASES))
def test_hostile_files_are_refused_in_one_line_without_side_effects(name, tmp_path):
    case = CASES[name]
    teacher, canary = tmp_path / case.name, tmp_path / "canary"
    case.make(teacher, canary)
    before = sorted([*os.listdir(tmp_path), "tmp"])
    ending = distil(teacher, tmp_path, case.around(teacher))
    assert (ending.code, ending.out) == (3, "")
    assert ending.err.startswith(f"robustkd: {teacher} ")
    assert case.says in ending.err
    assert ending.err.count("\n") == 1
    assert ending.err.rstrip("\n").isprintable()
    assert len(ending.err) < 600 + len(str(teacher))
    # No payload ran, no run began, nothing is left in quarantine.
    assert not canary.exists()
    assert left_behind(tmp_path) == before
    if ending.verdict is not None:
        assert ending.verdict.seconds < MOST_SECONDS
        assert ending.verdict.peak_mib is None or 0 < ending.verdict.peak_mib < MOST_MIB


def test_the_payloads_work_when_unpickled(tmp_path):
    """Unpickled, they do touch the canary."""
    pickle.loads(text_pickle(tmp_path / "canary"))  # noqa: S301 (our own bytes)
    assert os.listdir(tmp_path) == ["canary"]

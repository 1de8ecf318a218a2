"""The calibration of the audit counts backdoors that networks without them do not have."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def calibration():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import audit_rows

        yield audit_rows
    del sys.modules["audit_rows"]


def row(attack: str, asr: float | None, *references: float, p_value: float = 1.0, **others):
    found = {
        "verdict": "suspicious" if p_value <= 0.01 else "no evidence",
        "suspect": 3,
        "p_values": {"led share": p_value},
    }
    target = None if asr is None else 3
    return {
        **{"attack": attack, "ASR": asr, "reference ASR": list(references), "target": target},
        **{"arch": "wrn-10-1", "student": None, "probe": False, "full": found, "quick": found},
        **others,
    }


def test_a_backdoor_that_failed_or_that_references_have_is_listed_apart(calibration):
    rows = [
        row("tone", 0.99, 0.9, 0.7),
        row("tone", 0.99, 0.1, 0.3, p_value=0.001),
        row("scar", 0.1, 0.0),
        row("clean", None, arch="resnet-14"),
        row("clean", None),
        row("badnets", 0.9, 0.0, student="default"),
    ]
    assert {name: len(found) for name, found in calibration.groups(rows).items()} == {
        "clean": 1,
        "tone": 1,
        "clean, resnet-14": 1,
        "badnets, student by default": 1,
        "tone, leads references as well": 1,
        "scar, ASR below 50%": 1,
    }
    # One of two networks without a backdoor and one of two backdoors count as found at p = 1.
    assert calibration.curve(rows, "full", "led share") == [(0, 0), (0, 0.5), (1, 1), (1, 1)]


def test_a_network_without_a_p_value_is_not_found(calibration):
    rows = [row("clean", None), row("tone", 0.99, 0.0, p_value=0.001), row("tone", 0.99, 0.0)]
    rows[0]["full"]["p_values"]["led share"] = rows[2]["full"]["p_values"]["led share"] = None
    assert calibration.curve(rows, "full", "led share") == [(0, 0), (0, 0.5), (1, 1), (1, 1)]


def test_the_table_has_a_row_for_each_group_and_audit(calibration):
    rows = [row("clean", None), row("tone", 0.99, 0.0, p_value=0.001)]
    lines = calibration.table(rows).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [each[:6] for each in cells] == [
        ["clean", "full", "1", "0 [0%, 79%]", "-", "0"],
        ["clean", "quick", "1", "0 [0%, 79%]", "-", "0"],
        ["tone", "full", "1", "1 [21%, 100%]", "1", "0"],
        ["tone", "quick", "1", "1 [21%, 100%]", "1", "0"],
    ]

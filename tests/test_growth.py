"""The measurement of growth runs every kind of case, and its tables follow from the results."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.marks import slow

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RESULTS = BENCHMARKS / "results" / "growth"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def growth():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import growth

        yield growth
    for name in ("growth", "growth_case", "plain_distillation"):
        del sys.modules[name]


def tiny(growth, **changes):
    case = growth.Case(teacher="wrn-10-1", student="wrn-10-1", channels=1, side=8, batch=6, steps=3)
    return replace(case, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "bare"},
        {"method": "default", "channels": 3, "images": 60, "streamed": True},
        *map(
            slow,
            (
                {"method": "ofd", "stages": 2},
                {"method": "learned", "families": 1, "accumulate": 2},
            ),
        ),
    ],
    ids=lambda changes: changes["method"],
)
def test_a_case_is_measured_in_a_process_of_its_own(growth, changes):
    found = growth.run(tiny(growth, **changes))
    assert found["milliseconds"] > 0
    assert found["process"] > found["steps"] > 0
    assert growth.peak(found) >= found["set-up"] >= 0


def test_the_search_is_measured_without_steps(growth):
    found = growth.run(tiny(growth, method="search", classes=30, steps=6))
    assert found["set-up seconds"] > 0
    assert "milliseconds" not in found


def test_an_epoch_ends_after_the_steps_but_tells_the_size_of_the_whole_source(growth):
    import growth_case
    import torch

    case = tiny(growth, images=60)
    source, *_ = growth_case.prepared(case, Path())
    watched = growth_case.Watched(source, case.steps)
    batches = watched.batches("train", batch_size=6, augment=torch.Generator())
    assert len(list(batches)) == 3
    assert watched.size("train") == 60
    assert len(watched.began) == 4


def runs(growth, peaks):
    return {
        case: [
            {"set-up": 1.0, "steps": peak, "validation": 1.0, "process": 500.0 + peak}
            for peak in peaks(case)
        ]
        for case in (point.case for point in growth.AXES["memory"]())
    }


def test_the_memory_is_compared_with_the_bare_loop_of_the_same_round(growth):
    def peaks(case):
        return (100.0, 200.0) if case.method == "bare" else (150.0, 320.0)

    lines = growth.memory_table(runs(growth, peaks)).splitlines()
    assert len(lines) == 2 + len(growth.AXES["memory"]())
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells[1:5] == ["kd", "235 (150 to 320)", "1.55 (1.50 to 1.60)", "1.15"]


def test_other_axes_are_kept_when_one_is_measured_again(growth, tmp_path, monkeypatch):
    one = {"set-up": 1.0, "steps": 2.0, "validation": 1.0, "process": 3.0, "images": 1.0}
    one |= {"milliseconds": 4.0, "set-up seconds": 0.1}
    monkeypatch.setattr(growth, "run", lambda _case: one)
    for axis in ("stages", "families"):
        words = ["growth.py", "--axes", axis, "--rounds", "1", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", words)
        growth.main()
    cases = json.loads((tmp_path / "growth.json").read_text())["cases"]
    expected = [point.case for axis in ("stages", "families") for point in growth.AXES[axis]()]
    assert [growth.Case(**row["case"]) for row in cases] == expected
    assert (tmp_path / "growth.svg").read_text().startswith("<?xml")


def test_tables_are_those_of_the_committed_results_and_the_figure_is_always_the_same(growth):
    found = growth.read(RESULTS / "growth.json")
    assert (RESULTS / "memory.md").read_text() == growth.memory_table(found)
    assert (RESULTS / "many.md").read_text() == growth.many_table(found)
    assert (RESULTS / "growth.md").read_text() == growth.growth_table(found)
    assert growth.figure(found) == growth.figure(found)

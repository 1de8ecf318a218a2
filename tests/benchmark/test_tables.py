"""Tables from the files of cells, which may be damaged or incomplete."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from robustkd.benchmark import Cell, write_tables
from robustkd.benchmark.cells import TEACHER, Setting, TeacherCell
from robustkd.core.errors import InputError
from robustkd.core.files import write_json
from robustkd.report.results import ResultRow, read

CELL = Cell(TeacherCell(Setting("digits"), "wrn-10-1", "badnets", {}), "wrn-10-1", TEACHER)
OTHER = replace(CELL, method="kd")
RUN = asdict(ResultRow("digits", CELL.pair, "badnets", TEACHER, 0, 0.9, 0.8, 0.1, 10, 1.0, 50, 40))


def finish(out: Path, cell: Cell, **content: object) -> Path:
    """Write the result of a cell."""
    file = out / "cells" / f"{cell.name}.json"
    file.parent.mkdir(exist_ok=True)
    write_json(file, {"run": RUN, "environment": {"torch": "1"}, **content})
    return file


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({}, "run has no 'data'; every run needs it"),
        (3, "run is 3; expected an object"),
        ({**RUN, "acc": 2}, "run.acc is 2; expected a fraction in [0, 1]"),
    ],
)
def test_a_damaged_cell_is_named_and_nothing_is_written(run, message, tmp_path):
    finish(tmp_path, CELL)
    write_tables([CELL], tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    damaged = finish(tmp_path, OTHER, run=run)
    with pytest.raises(InputError, match=f"^{re.escape(f'{damaged}: {message}')}$"):
        write_tables([CELL, OTHER], tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


@pytest.mark.parametrize(
    ("change", "where"),
    [({"environment": []}, f"{OTHER.name}.json: environment is []; expected an object"), ({}, "")],
)
def test_cells_that_cannot_be_combined_leave_the_old_results(change, where, tmp_path):
    finish(tmp_path, CELL)
    finish(tmp_path, OTHER, **change)  # with the run of the first
    (tmp_path / "results.json").write_text("before")
    place = tmp_path / "cells" / where if where else f"{tmp_path / 'cells'}: "
    with pytest.raises(InputError, match=re.escape(str(place))):
        write_tables([CELL, OTHER], tmp_path)
    assert (tmp_path / "results.json").read_text() == "before"


def test_the_environment_is_that_of_all_cells(tmp_path):
    finish(tmp_path, CELL)
    finish(tmp_path, OTHER, run={**RUN, "seed": 1}, environment={"torch": "2", "cores": 4})
    write_tables([CELL, OTHER], tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())["environment"]
    assert found == {"torch": "1, 2", "cores": 4}


def test_cells_without_a_result_are_named(tmp_path):
    finish(tmp_path, CELL)
    assert write_tables([CELL, OTHER], tmp_path).missing == [OTHER.name]


def test_a_grid_with_results_of_the_teacher_only_has_tables(tmp_path):
    """A warning of matplotlib, which finds no method for its legend, would be an error here."""
    finish(tmp_path, CELL)
    write_json(tmp_path / "cells" / f"{OTHER.name}.json", {"error": "no"})
    assert [row.method for row in write_tables([CELL, OTHER], tmp_path).rows] == [TEACHER]
    assert read(tmp_path).config == {"cells": 2, "failed": [OTHER.name], "missing": []}

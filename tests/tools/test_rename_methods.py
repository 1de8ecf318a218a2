from __future__ import annotations

import json
from dataclasses import replace

import pytest

from robustkd.benchmark.attacked_teachers import Rehearsal
from robustkd.benchmark.cells import Cell, Setting, TeacherCell
from robustkd.core.errors import InputError
from tools.rename_methods import main, rename

TEACHER = TeacherCell(Setting("digits"), "wrn-10-2", "ckd", {}, surrogate="wrn-10-1")
ADAPTIVE = replace(TEACHER, attack="adaptive-harden", rehearsal=Rehearsal({}, "additions"))
CELLS = {
    name: Cell(teacher, "wrn-10-1", "additions")
    for name, teacher in (("plain", TEACHER), ("adaptive", ADAPTIVE))
}


def write(folder, cell, name=None):
    (folder / "cells").mkdir(exist_ok=True)
    content = {"run": {"method": cell.method}, "cell": cell.configuration()}
    path = folder / "cells" / f"{name or cell.name}.json"
    path.write_text(json.dumps(content, default=dict))
    return path


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_gets_the_name_that_its_configuration_now_has(kind, tmp_path, monkeypatch):
    cell = CELLS[kind]
    path = write(tmp_path, cell)
    content = json.loads(path.read_text())
    assert rename(tmp_path, {"additions": "both", "both": "additions"}) == 1
    (made,) = tmp_path.glob("cells/*")
    renamed = json.loads(made.read_text())
    assert renamed["run"]["method"] == renamed["cell"]["method"] == "both"
    assert made.stem.startswith(f"{cell.teacher.attack}.both.seed-0.")
    if kind == "adaptive":
        assert renamed["cell"]["teacher"]["rehearsal"]["method"] == "both"
    assert rename(tmp_path, {"both": "additions"}) == 1
    assert json.loads(path.read_text()) == content


def test_other_results_keep_every_byte(tmp_path):
    path = write(tmp_path, CELLS["plain"])
    before = path.read_bytes()
    assert rename(tmp_path, {"kd": "ofd"}) == 0
    assert path.read_bytes() == before


def test_rows_without_cells_are_renamed(tmp_path):
    rows = [{"method": "default"}, {"method": "kd"}, {"method": "default+student-anp"}]
    content = {"runs": rows, "config": {"methods": ["default", "kd"]}}
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert main(["default=additions", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert [row["method"] for row in found["runs"]] == ["additions", "kd", "additions+student-anp"]
    assert found["config"]["methods"] == ["additions", "kd"]


def test_nothing_is_written_if_a_name_does_not_fit(tmp_path, capsys):
    good, bad = write(tmp_path, CELLS["plain"]), write(tmp_path, CELLS["adaptive"], "a.b.c")
    before = good.read_bytes(), bad.read_bytes()
    with pytest.raises(InputError, match=r"a\.b\.c\.json: the name does not fit"):
        rename(tmp_path, {"additions": "kd"})
    assert (good.read_bytes(), bad.read_bytes()) == before
    assert main(["additions=kd", str(tmp_path)]) == 1
    assert main([str(tmp_path)]) == main(["a=b=c", str(tmp_path)]) == 1
    assert "expected OLD=NEW" in capsys.readouterr().err

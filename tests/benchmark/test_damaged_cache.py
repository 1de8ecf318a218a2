"""Damaged files in the cache of a grid: no network that is there is made again by itself."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from robustkd.benchmark import Cell, run_cell
from robustkd.benchmark.cache import Store
from robustkd.benchmark.cells import Setting, TeacherCell
from robustkd.benchmark.run_cell import NoTeacherError, make_teacher
from robustkd.core.errors import InputError

SETTING = Setting("digits", {"train": 96, "validation": 40, "test": 40}, threads=1)
TEACHER = TeacherCell(SETTING, "wrn-10-1", "badnets", {"epochs": 1})
CELL = Cell(TEACHER, "wrn-10-1", "kd", training={"epochs": 1})
ADVICE = "; to make it again, remove the folder "


def networks(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.is_file())


def test_the_folder_to_remove_is_named(tmp_path):
    store = Store(tmp_path)
    told = run_cell(CELL, store)
    files = networks(tmp_path)
    names = ["made.json"] * 2 + ["model.safetensors"] * 2 + ["trigger.safetensors"]
    assert sorted(path.name for path in files) == names
    for path in files:
        content = path.read_bytes()
        message = f"{re.escape(str(path))}.*{ADVICE}{re.escape(str(path.parent))}$"
        for damaged in (b"", content[: len(content) // 2], b"{}", None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises((InputError, NoTeacherError), match=message):
                run_cell(CELL, store)
        path.write_bytes(content)
    shutil.rmtree(files[0].parent)
    again = run_cell(CELL, store)
    for content in (told, again):
        del content["run"]["seconds"]
    assert again["run"] == told["run"]


def test_the_folder_of_a_shared_clean_teacher_is_named(tmp_path):
    cell = replace(TEACHER, attack="tone", attacking={"epochs": 1, "trigger_steps": 2})
    make_teacher(cell, Store(tmp_path))
    (path,) = networks(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=f"{ADVICE}{re.escape(str(path.parent))}$"):
        make_teacher(cell, Store(tmp_path))

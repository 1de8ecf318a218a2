"""Grids whose data is a folder of images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from robustkd import cli
from robustkd.benchmark import Cell, load_grid, run_cell
from robustkd.benchmark.cache import Store
from robustkd.benchmark.folder_data import folder_facts, left_out
from robustkd.core.errors import UsageError


@pytest.fixture
def images(tmp_path) -> Path:
    """Dark and light images of 8 x 8 pixels, 20 of each class for training."""
    folder = tmp_path / "shades"
    for split, count in (("train", 20), ("val", 6), ("test", 6)):
        for name, shade in (("dark", 20), ("light", 200)):
            place = folder / split / name
            place.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(np.full((8, 8, 3), shade + k, np.uint8)).save(place / f"{k}.png")
    return folder


def grid(folder: Path, path: object, **sizes: int) -> list[Cell]:
    content = {
        "data": {"path": path, **sizes},
        "pairs": [["wrn-10-1", "wrn-10-1"]],
        "attacks": {"badnets": None},
        "methods": ["mix"],
        "seeds": [0],
        "teaching": {"epochs": 1, "batch_size": 8},
        "training": {"epochs": 1, "batch_size": 8},
    }
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump(content))
    return load_grid(file)


def test_the_path_is_relative_to_the_grid_and_no_part_of_the_names(images, tmp_path):
    cells = grid(tmp_path, "shades", train=20)
    setting = cells[0].teacher.setting
    assert (setting.path, dict(setting.sizes)) == (str(images), {"train": 20})
    assert str(tmp_path) not in repr([cell.configuration() for cell in cells])
    moved = tmp_path / "elsewhere" / "shades"
    shutil.copytree(images, moved)
    assert [cell.name for cell in grid(tmp_path, "elsewhere/shades", train=20)] == [
        cell.name for cell in cells
    ]


@pytest.mark.parametrize("change", ["content", "name", "class"])
def test_other_images_are_other_cells(change, images):
    before = folder_facts(str(images)).name
    folder_facts.cache_clear()
    file = images / "train" / "dark" / "3.png"
    if change == "content":
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        name = "33.png" if change == "name" else "../light/33.png"
        file.rename(file.parent / name)
    after = folder_facts(str(images)).name
    assert before != after
    assert before.startswith("shades-")


def test_files_that_are_left_out_are_counted_once_for_each_folder(images, tmp_path):
    assert left_out(grid(tmp_path, "shades")) == {}
    folder_facts.cache_clear()
    for name in ("a.avif", "b.avif", "notes.txt"):
        (images / "train" / "dark" / name).write_bytes(b"not read")
    cells = grid(tmp_path, "shades")
    assert left_out(cells) == {cells[0].teacher.setting.data: {".avif": 2, ".txt": 1}}


def test_bench_prints_what_is_left_out(images, tmp_path, monkeypatch, capsys):
    (images / "train" / "dark" / "notes.txt").write_text("not an image")
    (cell, *_) = grid(tmp_path, "shades")

    def stop(*_: object, **__: object) -> None:
        raise UsageError("before the first cell")

    monkeypatch.setattr("robustkd.benchmark.run_grid", stop)
    with pytest.raises(SystemExit):
        cli.main(["bench", str(tmp_path / "grid.yaml")])
    told = " ".join(capsys.readouterr().err.split())
    name = cell.teacher.setting.data
    assert f"left out of {name}, since they are not images of a class: 1 .txt" in told


def test_cells_of_a_folder_run(images, tmp_path):
    teacher, student = grid(tmp_path, "shades")
    store = Store(tmp_path / "cache")
    assert run_cell(teacher, store)["run"]["data"] == teacher.teacher.setting.data
    assert run_cell(student, store)["run"]["n_acc"] == 12


@pytest.mark.parametrize("path", ["nowhere", 3, None, "grid.yaml"])
def test_a_path_that_is_not_a_folder_is_refused(path, tmp_path):
    with pytest.raises(UsageError, match=r"data\.path is .*; expected a folder, relative to"):
        grid(tmp_path, path)

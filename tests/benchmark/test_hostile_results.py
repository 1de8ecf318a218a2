"""Hostile folders of results or networks, given to `robustkd bench`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from robustkd.benchmark.cache import Store
from robustkd.benchmark.cells import Cell, Setting, TeacherCell
from robustkd.benchmark.records import Told, finished, gather
from robustkd.benchmark.runner import run_grid
from robustkd.core.errors import InputError
from robustkd.core.files import read_json

CELL = Cell(TeacherCell(Setting("digits"), "wrn-10-1", "badnets", {}), "wrn-10-1", "teacher")
NAME = f"cells/{CELL.name}.json"


def nobody(groups: Sequence[Sequence[Cell]], out: Path, cache: Path) -> Iterator[list[Told]]:
    """An executor that only leaves a file behind, where cells and networks go."""
    (cache / "network").write_text("a network")
    yield []


@pytest.fixture
def victim(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "diary").write_text("precious")
    yield folder
    assert [path.name for path in folder.iterdir()] == ["diary"]
    assert (folder / "diary").read_text() == "precious"


@pytest.mark.parametrize("name", ["cells", "cache"])
def test_a_folder_within_the_results_is_never_a_link(name, tmp_path, victim):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(victim)
    message = rf"{name} is refused: it is a symbolic link, not a folder; remove it$"
    with pytest.raises(InputError, match=message):
        run_grid([CELL], out, executor=nobody)


def test_a_folder_of_networks_that_the_user_names_may_be_a_link(tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "large")
    run_grid([CELL], tmp_path / "out", executor=nobody, cache=tmp_path / "cache")
    assert (tmp_path / "large" / "network").exists()


def test_a_result_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "elsewhere.json").write_text(json.dumps({"run": {}}))
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere.json")
    for look in (lambda: finished(CELL, tmp_path), lambda: gather([CELL], tmp_path)):
        with pytest.raises(InputError, match=r"is refused: it is a symbolic link; remove it$"):
            look()


@pytest.mark.parametrize("name", ["key", "key.lock", "key.partial"])
def test_a_store_follows_no_link(name, tmp_path, victim):
    (tmp_path / "store").mkdir()
    goal = victim / "diary" if name == "key.lock" else victim
    (tmp_path / "store" / name).symlink_to(goal)
    store = Store(tmp_path / "store")
    if name == "key.partial":
        made = store.fetch("key", lambda folder: (folder / "made.json").write_text("{}"))
        assert (made / "made.json").exists()
        return
    with pytest.raises(InputError, match=r"is refused: it is a symbolic link"):
        store.fetch("key", lambda folder: (folder / "made.json").write_text("{}"))


@pytest.mark.parametrize("key", ["key", "12aaf9bb7935c95d"])
def test_what_a_killed_process_left_in_a_store_is_removed(key, tmp_path):
    left = tmp_path / f".robustkd-{key}-0123456789abcdef.partial"
    other = tmp_path / ".robustkd-other-0123456789abcdef.partial"
    for folder in (left, other):
        folder.mkdir()
    Store(tmp_path).fetch(key, lambda _folder: None)
    assert (left.exists(), other.exists()) == (False, True)


def test_networks_in_a_store_are_files_of_their_folder(tmp_path):
    (tmp_path / "made.json").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"it is a symbolic link"):
        read_json(tmp_path / "made.json")

"""The folder of an export is complete, or it is missing or as empty as before."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from robustkd.core.errors import InputError, UsageError
from robustkd.core.files import check_free, new_folder
from robustkd.export.folder import whole_folder


def fill(out: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
    with whole_folder(out) as folder:
        assert folder.is_absolute()
        (folder / "a").write_text("first")
        assert not (out / "a").exists()
        (folder / "b").write_text("second")
        meanwhile()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_missing_folder_is_created_with_its_parents(tmp_path):
    fill(tmp_path / "x" / "out")
    assert names(tmp_path / "x") == ["out"]
    assert names(tmp_path / "x" / "out") == ["a", "b"]


@pytest.mark.parametrize("kind", ["empty", "with a lock", "link", "working directory"])
def test_an_empty_folder_is_filled_and_stays_the_same_folder(kind, tmp_path, monkeypatch):
    out = real = tmp_path / "real"
    real.mkdir()
    before = real.stat().st_ino
    if kind == "with a lock":
        (real / ".lock").touch()
    elif kind == "link":
        out = tmp_path / "link"
        out.symlink_to(real)
    elif kind == "working directory":
        monkeypatch.chdir(real)
        out = Path()
    fill(out)
    assert names(real) == ["a", "b"]
    assert real.stat().st_ino == before
    assert out.is_symlink() is (kind == "link")


@pytest.mark.parametrize("there", [False, True])
def test_an_error_leaves_nothing(there, tmp_path):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with pytest.raises(ZeroDivisionError):
        fill(out, lambda: 1 / 0)
    assert out.exists() is there
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_what_a_killed_export_left_does_not_stop_the_next(tmp_path):
    left = tmp_path / ".robustkd-export-0123456789abcdef.partial"
    left.mkdir()
    (left / "a").touch()
    (tmp_path / ".lock").touch()
    check_free(tmp_path)
    fill(tmp_path)
    assert names(tmp_path) == ["a", "b"]


def test_two_exports_do_not_share_a_folder(tmp_path):
    with new_folder(tmp_path), pytest.raises(InputError, match=r" is in use by another process"):
        fill(tmp_path)


def test_files_that_appear_meanwhile_are_kept(tmp_path):
    with pytest.raises(UsageError, match=r" is not empty"):
        fill(tmp_path, lambda: (tmp_path / "b").write_text("theirs"))
    assert names(tmp_path) == ["b"]
    assert (tmp_path / "b").read_text() == "theirs"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file", "File exists"), ("dangling", "File exists"), ("file/x/y", "Not a directory")],
)
def test_what_cannot_become_a_folder_is_refused_at_once(name, reason, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nothing")
    with pytest.raises(InputError) as caught:
        check_free(tmp_path / name)
    assert str(caught.value) == f"output folder {tmp_path / name} cannot be made: {reason}"


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    with pytest.raises(InputError, match=r" cannot be made: Permission denied$"):
        check_free(tmp_path / "new" / "out")
    with pytest.raises(InputError, match=r" cannot be written: Permission denied$"):
        check_free(tmp_path)

"""The folder of an export is complete, or it is missing or as empty as before."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from robustkd.core.errors import InputError, UsageError, WriteError
from robustkd.core.files import check_free, new_folder
from robustkd.core.folders import refusal
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


NEXT_TO_IT = ".out.0123456789abcdef.partial"


def test_what_a_killed_export_left_next_to_the_folder_is_removed(tmp_path):
    kept = [".other.0123456789abcdef.partial", ".out.0123456789abcdef", ".out.x.partial"]
    for name in (NEXT_TO_IT, *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lock").touch()
        (tmp_path / name / "a").touch()
    fill(tmp_path / "out")
    assert names(tmp_path) == sorted([*kept, "out"])
    assert names(tmp_path / "out") == ["a", "b"]


def test_what_may_be_in_use_next_to_the_folder_is_kept(tmp_path):
    """Folders that another export holds, that have no lock, or that are links."""
    others = [tmp_path / f".out.{digit * 16}.partial" for digit in "0123"]
    for path in others[:3]:
        path.mkdir()
    (others[1] / "a").touch()
    (others[2] / ".lock").mkdir()
    others[3].symlink_to(others[0])
    with new_folder(others[0]):
        fill(tmp_path / "out")
    assert all(path.exists() for path in others)
    assert others[3].is_symlink()


def test_an_export_in_progress_is_not_taken_for_a_leftover(tmp_path):
    def another() -> None:
        fill(tmp_path / "out")
        (partial,) = tmp_path.glob(".out.*.partial")
        assert names(partial) == [".lock", "a", "b"]

    with pytest.raises(WriteError, match=r" cannot be written: Directory not empty$"):
        fill(tmp_path / "out", another)
    assert names(tmp_path) == ["out"]


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


@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_cannot_be_written_is_named_in_the_folder_of_the_user(
    there, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    out = Path("out")
    if there:
        out.mkdir()
    message = r"^out/a cannot be written: File exists$"
    with pytest.raises(WriteError, match=message), whole_folder(out) as folder:
        raise refusal(folder / "a", FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)))

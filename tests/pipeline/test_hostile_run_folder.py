"""A run folder from somebody else: nothing outside it is read, written or deleted."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from robustkd.core.environment import environment
from robustkd.core.errors import InputError, UsageError
from robustkd.core.files import read_json, write_json, write_text
from robustkd.pipeline import run_folder
from robustkd.pipeline.run_folder import opened
from robustkd.pipeline.trackers import Events
from robustkd.training.checkpoint import State

BEGUN = {"settings": {"epochs": 3}, "teacher": {}, "data": {}}
KEPT = "the user's own file\n"
RECORDS = [{"epoch": 1.0, "loss": 0.5}]


@pytest.fixture
def outside(tmp_path) -> Path:
    """A file of the user's that no run may touch."""
    path = tmp_path / "outside" / "profile"
    path.parent.mkdir()
    path.write_text(KEPT)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run that was begun, as an archive could hold it."""
    path = tmp_path / "run"
    with opened(path, begun=BEGUN, config={"epochs": 3}):
        pass
    return path


def resume(folder: Path) -> None:
    with opened(folder, begun=BEGUN, resume=True) as run:
        run.last()
        run.keep(State({}, {"records": RECORDS}))


def replace(path: Path, goal: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(goal)
    elif kind == "hard link":
        os.link(goal, path)
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["link", "hard link", "FIFO"])
@pytest.mark.parametrize("name", ["run.log", ".lock"])
def test_a_file_that_is_appended_to_is_the_folder_s_own(name, kind, folder, outside):
    replace(folder / name, outside, kind)
    with pytest.raises(InputError, match=rf"{name} is a link or no regular file; remove it$"):
        resume(folder)
    assert outside.read_text() == KEPT


@pytest.mark.parametrize("kind", ["link", "FIFO"])
@pytest.mark.parametrize(
    "name", ["config.yaml", "run.json", "environment.json", "checkpoint.safetensors"]
)
def test_a_file_that_is_read_is_the_folder_s_own(name, kind, folder, outside):
    replace(folder / name, outside, kind)
    with pytest.raises(InputError):
        resume(folder)
    assert outside.read_text() == KEPT


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint.safetensors"])
@pytest.mark.parametrize("ending", ["", ".partial"])
def test_a_file_that_is_written_takes_the_place_of_a_link(name, ending, tmp_path, outside):
    (tmp_path / f"{name}{ending}").symlink_to(outside)
    write_text(tmp_path / name, "new")
    assert (tmp_path / name).read_text() == "new"
    assert outside.read_text() == KEPT


def test_a_linked_tensorboard_folder_is_refused_and_nothing_in_it_deleted(folder, outside):
    (folder / "tensorboard").symlink_to(outside.parent)
    with pytest.raises(InputError, match=r"tensorboard is a link or no folder; remove it$"):
        resume(folder)
    assert outside.read_text() == KEPT


def test_only_event_files_of_our_own_are_deleted(tmp_path, outside):
    own, linked, other = (
        tmp_path / name
        for name in (
            "events.out.tfevents.1.robustkd",
            "events.out.tfevents.2.robustkd",
            "events.out.tfevents.3.other",
        )
    )
    own.touch()
    other.touch()
    linked.symlink_to(outside)
    Events(tmp_path).show(RECORDS)
    assert not own.exists()
    assert other.exists()
    assert outside.read_text() == KEPT


def test_unfinished_files_of_our_own_are_deleted_and_nothing_else(folder, outside):
    name = f".metrics.jsonl.{'0' * 16}.partial"
    (folder / name).touch()
    (folder / "notes.partial").touch()
    (folder / f".x.{'1' * 16}.partial").symlink_to(outside)
    resume(folder)
    assert not (folder / name).exists()
    assert (folder / "notes.partial").exists()
    assert outside.read_text() == KEPT


@pytest.mark.parametrize("name", ["config.yaml.partial", ".hidden", "run.log"])
def test_a_new_run_takes_no_folder_that_holds_anything(name, tmp_path, outside):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(outside)
    with (
        pytest.raises(UsageError, match=r"is not empty; give a new one with --out$"),
        opened(tmp_path / "run", begun=BEGUN),
    ):
        pytest.fail("began")
    assert outside.read_text() == KEPT
    assert os.listdir(tmp_path / "run") == [name]


def test_values_of_the_environment_are_quoted_in_the_log(folder):
    bad = "x\nalias ls='rm -rf ~'\n\x1b[2J" + "y" * 1000
    write_json(folder / "environment.json", environment() | {"torch": bad, "python": {"a": [bad]}})
    resume(folder)
    log = (folder / "run.log").read_text()
    assert "\x1b" not in log
    assert not any(line.startswith("alias") for line in log.splitlines())
    assert max(map(len, log.splitlines())) < 400


def test_of_two_new_runs_in_one_folder_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_LOCK_SECONDS", 0.0)
    ends = []
    inside, done = threading.Event(), threading.Event()

    def first() -> None:
        with opened(tmp_path / "run", begun=BEGUN):
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    try:
        with opened(tmp_path / "run", begun=BEGUN | {"settings": {"epochs": 4}}):
            ends.append("began")
    except (InputError, UsageError) as error:
        ends.append(type(error).__name__)
    done.set()
    thread.join()
    assert ends == ["UsageError"]
    assert read_json(tmp_path / "run" / "run.json") == BEGUN


def test_a_run_that_waited_for_the_lock_never_takes_over_a_finished_one(tmp_path, monkeypatch):
    """The second process saw an empty folder, and gets the lock when the first has finished."""
    out = tmp_path / "run"
    out.mkdir()
    real = run_folder.new_folder

    def overtaken(path: Path) -> Path:
        made = real(path)
        (path / "config.yaml").write_text("epochs: 3\n")
        (path / "report.html").write_text("the first run's")
        return made

    monkeypatch.setattr(run_folder, "new_folder", overtaken)
    with pytest.raises(UsageError, match="is not empty"), opened(out, begun=BEGUN):
        pytest.fail("began")
    assert (out / "report.html").read_text() == "the first run's"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "cannot be read as a run's file"),
        (b"[]", "cannot be read as a run's file: no JSON object"),
        (b"\xff", "cannot be read as a run's file"),
        (b"[" * 100_000, "cannot be read as a run's file"),
    ],
)
def test_broken_json_is_one_line(content, reason, tmp_path):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_json(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


def test_a_huge_json_file_is_not_read(tmp_path):
    with (tmp_path / "r.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"has 1,099,511,627,776 bytes; expected at most"):
        read_json(tmp_path / "r.json")


def test_a_run_that_goes_on_is_the_one_that_was_begun(folder):
    assert json.loads((folder / "run.json").read_text()) == BEGUN
    resume(folder)
    assert (folder / "metrics.jsonl").exists()

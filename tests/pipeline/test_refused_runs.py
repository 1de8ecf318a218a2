"""Runs that are refused leave no folder; runs that were stopped keep theirs."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import pytest

from robustkd import models
from robustkd.core.errors import InputError, TrainingError, UsageError, WriteError
from robustkd.pipeline import experiments
from robustkd.pipeline import run as main_line
from robustkd.pipeline import student as making
from robustkd.training.inference import accuracy_on
from tests.pipeline.runs import CLEAN, build, run


def test_a_teacher_near_chance_stops_before_anything_is_made(tmp_path):
    path, out = tmp_path / "untrained.safetensors", tmp_path / "out"
    models.save(build(1), path)
    found = accuracy_on(models.load(path), CLEAN, "validation")
    message = (
        f"teacher {path.name}: accuracy is {found} on 60 validation images of digits, near chance "
        "(10.0%); check that the image size, the preprocessing (--mean, --std) and the classes "
        "with their order (--class-names) are those that it was trained with"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run(path, out)
    assert not out.exists()


def refusing(*_arguments: object, **_settings: object) -> None:
    raise UsageError("refused")


def test_a_run_that_is_refused_by_its_training_leaves_no_folder(
    teacher_file, tmp_path, monkeypatch
):
    """A second attempt needs no other folder; an empty folder that was there stays."""
    there = tmp_path / "there"
    there.mkdir()
    for out in (tmp_path / "out", there):
        with monkeypatch.context() as patch:
            patch.setattr(making, "make_hardening", refusing)
            with pytest.raises(UsageError, match=r"^refused$"):
                run(teacher_file, out)
    assert not (tmp_path / "out").exists()
    assert not any(there.iterdir())


def test_a_training_that_diverges_leaves_no_folder(teacher_file, tmp_path):
    """A second attempt with another learning rate needs no other folder."""
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match="try a smaller learning rate"):
        run(teacher_file, out, method="no-teacher", training={"epochs": 1, "lr": 1e30})
    assert not out.exists()


def test_no_experiment_is_started_for_a_run_that_is_refused(teacher_file, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    started: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(main_line, "make_student", kill)
        with pytest.raises(Killed):
            run(teacher_file, tmp_path / "out")
        monkeypatch.setattr(experiments, "_started", lambda *given: started.append(given))
        monkeypatch.setattr(main_line, "check_services", lambda _: ("wandb",))
        with pytest.raises(UsageError, match="was started with settings seed 0, now it is 1"):
            run(teacher_file, tmp_path / "out", resume=True, seed=1)
        assert not started
        with pytest.raises(Killed):
            run(teacher_file, tmp_path / "out", resume=True)
        assert len(started) == 1


def test_a_full_disk_leaves_the_folder_since_the_run_can_be_resumed(
    teacher_file, tmp_path, monkeypatch
):
    def full(*_arguments: object, **_settings: object) -> None:
        raise WriteError("no space left")

    monkeypatch.setattr(making, "make_hardening", full)
    with pytest.raises(WriteError, match="--resume"):
        run(teacher_file, tmp_path / "out")
    assert (tmp_path / "out" / "config.yaml").exists()


def test_a_run_that_is_refused_after_an_epoch_keeps_its_folder(teacher_file, tmp_path, monkeypatch):
    monkeypatch.setattr(main_line, "write_results", refusing)
    with pytest.raises(UsageError, match=r"^refused"):
        run(teacher_file, tmp_path / "out", method="no-teacher")
    assert (tmp_path / "out" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "papr"}, "unknown method 'papr'; did you mean 'paper'?"),
        ({"student": "resnet"}, "unknown architecture 'resnet'; expected wrn-DEPTH-WIDTH, "),
        ({"arch": "wrn10"}, "unknown architecture 'wrn10'; expected wrn-DEPTH-WIDTH, "),
    ],
)
def test_unknown_names_stop_before_anything_is_made(changes, message, teacher_file, tmp_path):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        run(teacher_file, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_names_that_no_report_can_show_stop_before_anything_is_read(tmp_path):
    long = replace(CLEAN, name="d" * 121)
    message = (
        f"the name of the data is '{'d' * 120}...'; expected at most 120 characters: rename it"
    )
    with pytest.raises(UsageError, match=f"^{message}$"):
        run(tmp_path / "none", tmp_path / "out", clean=long)
    own = f"package.{'m' * 120}:build"
    with pytest.raises(
        UsageError, match=r"^the name of the pair is 'package\.m+\.\.\.'; expected at "
    ):
        run(tmp_path / "none", tmp_path / "out", arch=own)
    odd = tmp_path / os.fsdecode(b"caf\xe9.pt")
    with pytest.raises(InputError, match=r"caf\\udce9.pt' is not a path in UTF-8; rename the file"):
        run(odd, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_used_folder_is_refused_and_not_changed(teacher_file, tmp_path):
    (tmp_path / "student.safetensors").write_text("precious")
    with pytest.raises(UsageError, match=r"is not empty; give a new one with --out$"):
        run(teacher_file, tmp_path)
    assert (tmp_path / "student.safetensors").read_text() == "precious"

"""``robustkd.run`` does what ``robustkd distill`` does."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import robustkd
from robustkd import cli
from robustkd.core.errors import InputError, UsageError
from robustkd.pipeline import api, run_files, run_folder
from robustkd.pipeline.job import DistillJob
from robustkd.training.config import TrainingConfig, TrainingOptions
from robustkd.training.recipes import with_defaults
from tests.data.images.image_files import write_splits
from tests.pipeline.runs import CLEAN, stopped_after


def test_python_and_the_command_make_the_same_student(teacher_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = robustkd.run(
        str(teacher_file),
        "digits",
        "wrn-10-1",
        arch="wrn-10-1",
        method="kd",
        audit=False,
        epochs=1,
    )
    assert made.folder == Path("robustkd-run")
    assert not made.student.training
    cli.main(
        [
            *("distill", str(teacher_file), "--arch", "wrn-10-1", "--student", "wrn-10-1"),
            *("--data", "digits", "--method", "kd", "--epochs", "1", "--out", "command"),
            "--no-audit",
        ]
    )
    name = "student.safetensors"
    assert (made.folder / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
    capsys.readouterr()
    flags, typed = (
        yaml.safe_load((folder / "config.yaml").read_text())
        for folder in (made.folder, tmp_path / "command")
    )
    assert {name: typed[name] for name in flags} == flags


@pytest.mark.parametrize(
    ("data", "expected"),
    [("photos", "PLACE/photos"), (Path("photos"), "PLACE/photos"), (Path("digits"), "digits")],
)
def test_the_recorded_data_can_be_found_from_any_folder(data, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_splits(
        tmp_path / "photos", {split: {"a": 2, "b": 2} for split in ("train", "val", "test")}
    )
    (tmp_path / "t.safetensors").touch()
    told = {}

    def begun(*_, config, **__):
        told.update(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "distill_file", begun)
    with pytest.raises(KeyboardInterrupt):
        robustkd.run("t.safetensors", data, "wrn-10-1", arch="wrn-10-1", out="run")
    assert told["data"] == expected.replace("PLACE", str(tmp_path))


@pytest.mark.parametrize(
    ("given", "expected"), [(None, ()), ("wandb", ("wandb",)), (["mlflow"], ["mlflow"])]
)
def test_services_are_named_alone_or_in_a_list(given, expected, monkeypatch):
    def begun(*_, track, **__):
        assert track == expected
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "distill_file", begun)
    with pytest.raises(KeyboardInterrupt):
        robustkd.run("t.pt", CLEAN, "wrn-10-1", arch="wrn-10-1", out="run", track=given)


def test_the_side_of_a_defence_needs_a_defence():
    with pytest.raises(UsageError, match=r"^on is given without defence; add it, or leave it out$"):
        robustkd.run("t.pt", CLEAN, "wrn-10-1", arch="wrn-10-1", on="student")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"optimizer": "sgd", "momentum": 0.5},
        {"weight_decay": 0.0005, "warmup_epochs": 0.0},
        {"optimizer": "adamw", "weight_decay": 0.0005},
    ],
)
@pytest.mark.parametrize("student", ["wrn-10-1", "timm/test_vit"])
def test_the_recorded_flags_give_the_same_training(student, given):
    training = TrainingConfig(**with_defaults(given, student))
    flags = DistillJob(Path("t.pt"), "wrn-10-1", student, training=training).flags()
    recorded = {name: flags[name] for name in TrainingOptions.__annotations__ if name in flags}
    assert TrainingConfig(**with_defaults(recorded, student)) == training


def test_python_takes_every_setting_of_a_run():
    settings = {setting.name for setting in fields(DistillJob)} - {"training"}
    assert settings <= inspect.signature(robustkd.run).parameters.keys()


@pytest.mark.parametrize("which", ["teacher_taps", "student_taps"])
def test_python_names_stages(which, teacher_file, tmp_path):
    options = {"arch": "wrn-10-1", "out": tmp_path / "run", which: ("network.group",)}
    message = "no module 'network.group' in Classifier; did you mean 'network.groups'?"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        robustkd.run(teacher_file, CLEAN, "wrn-10-1", **options)


@pytest.mark.parametrize(
    ("option", "nearest"),
    [("epoch", "epochs"), ("bach_size", "batch_size"), ("defense", "defence")],
)
def test_an_unknown_option_is_refused_and_the_nearest_suggested(option, nearest):
    message = f"unknown option {option!r}; did you mean {nearest!r}?"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        robustkd.run("teacher.pt", "digits", "wrn-10-1", arch="wrn-10-1", **{option: 1})


def test_python_takes_a_data_source_and_names_a_free_folder(teacher_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "robustkd-run").mkdir()
    made = robustkd.run(
        teacher_file,
        CLEAN,
        "wrn-10-1",
        arch="wrn-10-1",
        method="no-teacher",
        audit=False,
        epochs=1,
        lr=0.05,
    )
    assert made.folder == Path("robustkd-run-2")
    assert made.results.config["training"]["lr"] == 0.05
    # No command has this data source, so none is said to repeat the run.
    assert "data" not in yaml.safe_load((made.folder / "config.yaml").read_text())
    assert "robustkd distill" not in (made.folder / "report.html").read_text()
    assert "this command" not in (made.folder / "MODEL_CARD.md").read_text()
    with pytest.raises(UsageError, match=r"^unknown method 'defualt'; did you mean 'default'\?$"):
        robustkd.run(teacher_file, CLEAN, "wrn-10-1", arch="wrn-10-1", method="defualt")


def test_a_run_whose_data_came_from_python_is_resumed_by_the_same_call(
    teacher_file, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    settings = {"arch": "wrn-10-1", "method": "no-teacher", "audit": False, "epochs": 3}
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.Run, "is_due", stopped_after(2))
        with pytest.raises(KeyboardInterrupt) as stop:
            robustkd.run(teacher_file, CLEAN, "wrn-10-1", out=out, **settings)
    again = f"the same call of robustkd.run, with out='{out}' and resume=True"
    assert str(stop.value) == f"interrupted; resume with: {again}"
    with pytest.raises(InputError, match=rf"; finish it with: {re.escape(again)}$"):
        run_files.check_finished(out, run_files.STUDENT)
    made = robustkd.run(teacher_file, CLEAN, "wrn-10-1", out=out, resume=True, **settings)
    whole = robustkd.run(teacher_file, CLEAN, "wrn-10-1", out=tmp_path / "whole", **settings)
    files = [folder / "student.safetensors" for folder in (made.folder, whole.folder)]
    assert files[0].read_bytes() == files[1].read_bytes()
    finished = robustkd.run(teacher_file, CLEAN, "wrn-10-1", out=out, resume=True, **settings)
    assert finished.results == made.results


def test_a_command_cannot_resume_a_run_whose_data_came_from_python(teacher_file, tmp_path, capsys):
    out = tmp_path / "run"
    settings = {"arch": "wrn-10-1", "method": "no-teacher", "audit": False, "epochs": 1}
    robustkd.run(teacher_file, CLEAN, "wrn-10-1", out=out, **settings)
    with pytest.raises(SystemExit) as ended:
        cli.main(["distill", "--resume", str(out)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"robustkd: the images of the run {out} came from Python code; continue it with the same "
        f"call of robustkd.run, with out='{out}' and resume=True\n"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resume": True}, "resume is given without out; name the folder of the interrupted run"),
        ({"trust_run": True}, "trust_run is given without resume; add it, or leave it out"),
    ],
)
def test_python_resumes_a_named_run(given, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        robustkd.run("teacher.pt", "digits", "wrn-10-1", arch="wrn-10-1", **given)


def test_python_resumes_no_run_with_other_settings(teacher_file, tmp_path):
    out = tmp_path / "run"
    settings = {"arch": "wrn-10-1", "method": "no-teacher", "audit": False}
    robustkd.run(teacher_file, CLEAN, "wrn-10-1", out=out, epochs=1, **settings)
    with pytest.raises(UsageError, match="was started with settings epochs 1, now it is 2; "):
        robustkd.run(teacher_file, CLEAN, "wrn-10-1", out=out, epochs=2, resume=True, **settings)

"""The folder of a run that was killed is recognised by every command that is given one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustkd import data, models
from tests.cli.test_folders_of_students import call

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture
def killed(tmp_path) -> Path:
    """What a run leaves that is killed in its training."""
    folder = tmp_path / "my run"
    folder.mkdir()
    for name in ("config.yaml", "run.json", "environment.json", "checkpoint.safetensors"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("command", ["verify", "export", "audit", "evaluate"])
def test_a_run_that_is_not_finished_is_named_with_its_command(command, killed, tmp_path, capsys):
    more = ("--out", tmp_path / "new") if command == "export" else ()
    code, _, err = call(capsys, command, killed, "--data", "digits", *more)
    assert code == 3
    assert err.strip() == (
        f"robustkd: {killed} is a run that is not finished and has no student.safetensors yet; "
        f"finish it with: robustkd distill --resume '{killed}'"
    )


def test_its_report_is_not_written(killed, capsys):
    code, _, err = call(capsys, "report", killed)
    assert code == 3
    assert err.strip() == (
        f"robustkd: {killed} is a run that is not finished and has no results.json yet; "
        f"finish it with: robustkd distill --resume '{killed}'"
    )


@pytest.fixture
def measured_later(killed) -> Path:
    """What a run leaves that is killed after its student was written."""
    source = data.load("digits", train=300)
    model = models.build(models.spec_for("wrn-10-1", source), seed=0)
    models.save(model, killed / "student.safetensors")
    return killed


def test_a_student_without_results_is_said_to_be_of_a_run_that_is_not_finished(
    measured_later, capsys
):
    line = (
        f"{measured_later} is a run that is not finished and has no results.json yet; "
        f"finish it with: robustkd distill --resume '{measured_later}'"
    )
    for command in (("verify", "--no-audit"), ("evaluate",)):
        code, out, err = call(capsys, *command, measured_later, "--data", "digits")
        assert (code, err) == (0, f"warning: {line}\n")
        if command[0] == "verify":
            said = f"DROP   not measured: {measured_later} is a run that is not finished\n"
            assert said in out
    words = ("verify", measured_later, "--data", "digits", "--max-drop", 0.1)
    assert call(capsys, *words) == (3, "", f"robustkd: {line}\n")


def test_an_export_says_so_as_well(measured_later, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("robustkd.export.export_student", lambda *_, **__: {})
    words = ("export", measured_later, "--data", "digits", "--out", tmp_path / "new", "--json")
    code, out, err = call(capsys, *words)
    assert (code, out) == (0, "{}\n")
    assert err.startswith(f"warning: {measured_later} is a run that is not finished and has no ")


def test_a_teacher_of_a_student_is_no_run_that_is_not_finished(killed, tmp_path, capsys):
    student = tmp_path / "student.safetensors"
    source = data.load("digits", train=300)
    models.save(models.build(models.spec_for("wrn-10-1", source), seed=0), student)
    words = ("verify", student, "--data", "digits", "--no-audit", "--teacher", killed)
    code, _, err = call(capsys, *words)
    assert code == 3
    assert "is a run that is not finished" in err


def test_verify_names_the_flag_of_the_teacher(killed, tmp_path, capsys):
    """Its `--arch` is the student's."""
    student, teacher = tmp_path / "student.safetensors", tmp_path / "teacher.pt"
    source = data.load("digits", train=300)
    model = models.build(models.spec_for("wrn-10-1", source), seed=0)
    models.save(model, student)
    torch.save(model.network.state_dict(), teacher)
    words = ("verify", student, "--data", "digits", "--no-audit", "--teacher", teacher)
    code, _, err = call(capsys, *words)
    assert code == 2
    assert err.strip() == (
        "robustkd: --teacher-arch is missing; expected the architecture of the teacher, which no "
        "config.json next to its weights states: see robustkd list"
    )


def test_other_folders_are_what_they_were(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("{}")
    code, _, err = call(capsys, "evaluate", tmp_path, "--data", "digits")
    assert code == 3
    assert "is a folder without weights" in err

"""What `evaluate` accepts: a student, the folder of its run, and teachers of any kind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import robustkd
from robustkd import cli, data, models
from robustkd.core.files import at_home
from robustkd.training.inference import accuracy_on
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home folder with a teacher in three forms, and the folder of a run."""
    home = tmp_path_factory.mktemp("home")
    # The images of `few_digits`, since a checkpoint without statistics takes those of the data.
    source = data.load("digits", train=300)
    teacher = models.build(models.spec_for("wrn-10-1", source), seed=0)
    fit(Supervised(teacher), source, epochs=4, batch_size=32)
    models.save(teacher, home / "teacher.safetensors")
    torch.save({"state_dict": teacher.network.state_dict()}, home / "teacher.pth")
    (home / "run").mkdir()
    models.save(teacher, home / "run" / "student.safetensors")
    return home


@pytest.fixture
def evaluate(capsys, home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))

    def evaluate(*words: object) -> tuple[float | None, str]:
        capsys.readouterr()
        try:
            cli.main(["evaluate", *map(str, words), "--data", "digits", "--json"])
        except SystemExit:
            return None, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)["acc"], ""

    return evaluate


def test_a_run_a_student_and_a_checkpoint_have_the_same_accuracy(home, evaluate):
    expected = accuracy_on(
        models.load(home / "teacher.safetensors"), data.load("digits", train=300), "test"
    ).value
    for words in (
        [home / "teacher.safetensors"],
        [home],
        [home / "run"],
        [home / "teacher.pth", "--arch", "wrn-10-1"],
    ):
        assert evaluate(*words) == (expected, "")


def test_a_checkpoint_needs_its_architecture(home, evaluate):
    accuracy, said = evaluate(home / "teacher.pth")
    assert accuracy is None
    assert said.startswith("robustkd: --arch is missing; expected the architecture of the teacher")


def test_what_is_read_of_a_checkpoint_is_told(home, tmp_path, capsys):
    state = torch.load(home / "teacher.pth")["state_dict"]
    worse = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"epoch": 3, "model": worse, "ema": state}, tmp_path / "t.pth")
    words = ["evaluate", str(tmp_path / "t.pth"), "--arch", "wrn-10-1", "--data", "digits"]
    cli.main([*words, "--json"])
    said = capsys.readouterr()
    assert set(json.loads(said.out)) >= {"acc"}
    (line,) = said.err.splitlines()
    assert line.startswith("teacher: t.pth, torch zip, ")
    assert "chosen: 'ema' of 'model' (accuracy " in line
    assert line.endswith("; not used: 'epoch', 'model'; mean and std: statistics of the data")


def test_a_teacher_is_read_as_the_flags_say(home, evaluate):
    words = (home / "teacher.pth", "--arch", "wrn-10-1", "--allow-weak-sandbox")
    usual, _ = evaluate(*words)
    other, _ = evaluate(*words, "--mean", 0.9, "--std", 0.01, "--teacher-key", "state_dict")
    assert other < usual
    for flag, reason in (("--teacher-key", "--teacher-key is '1'"), ("--mean", "belong together")):
        assert reason in evaluate(*words, flag, 1)[1]
        expected = f"{flag} is given, but {home / 'teacher.safetensors'} is a file of robustkd"
        assert expected in evaluate(home / "teacher.safetensors", flag, 1)[1]


def test_a_damaged_student_is_reported_as_damaged(home, evaluate, tmp_path):
    content = (home / "teacher.safetensors").read_bytes()
    for length in (5, 100, 2000):
        (tmp_path / "s.safetensors").write_bytes(content[:length])
        assert "is not a readable safetensors file" in evaluate(tmp_path / "s.safetensors")[1]


def test_folders_and_files_of_something_else_are_refused(home, evaluate, tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    for path, reason in (
        (tmp_path, "is a folder without weights"),
        (home / "no.pt", "no.pt does not exist; expected a model's file, or the folder of a run"),
        (tmp_path / "notes.txt", "neither safetensors nor a torch checkpoint"),
    ):
        accuracy, said = evaluate(path, "--arch", "wrn-10-1")
        assert accuracy is None
        assert reason in said, said
    # Flags of teachers change nothing: the file is missing, and not one of robustkd.
    assert evaluate(home / "no.pt", "--mean", 0.5)[1].startswith(f"robustkd: {home / 'no.pt'} does")


@pytest.mark.parametrize("path", ["~/run", "~/teacher.safetensors"])
def test_a_tilde_in_quotes_is_the_home_folder(path, home, evaluate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert evaluate(path)[0] is not None
    assert evaluate(f"{home}/run", "--data-root=~/run")[1].count(str(home / "run")) <= 1
    assert at_home(path) == os.path.join(home, path[2:])
    (tmp_path / "~").mkdir()
    assert (at_home("~"), at_home("a~/b"), at_home("~b/c")) == ("~", "a~/b", "~b/c")


def test_python_expands_a_tilde_as_well(home, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(home))
    done = robustkd.run(
        "~/teacher.pth", "digits", "wrn-10-1", arch="wrn-10-1", method="kd", audit=False, epochs=1,
        out="~/by-python",
    )  # fmt: skip
    assert done.folder == home / "by-python"
    assert (home / "by-python" / "student.safetensors").is_file()

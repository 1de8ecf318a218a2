"""``robustkd verify --teacher`` reads the teacher as its run did, or as the flags say."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from robustkd import cli, data, models
from robustkd.core.files import read_json, write_json
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from tests.cli.test_folders_of_students import call, write_images

NAMES = ("bright", "dark", "grey", "light")
LEVELS = (250, 30, 120, 190)
DARK = (0.0, 1.0)
"""Mean and standard deviation far from those of the images."""
Verify = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Teachers with an unusual normalisation, and the run of a poor student of each."""
    home = tmp_path_factory.mktemp("teachers")
    for folder, names in (("all", NAMES), ("some", NAMES[1:3])):
        for place, (name, level) in enumerate(zip(NAMES, LEVELS, strict=True)):
            if name in names:
                for split, count in (("train", 20), ("val", 12), ("test", 12)):
                    write_images(home / folder / split / name, level, count, 10 * place + count)
    source = data.open_source(str(home / "all"), reading=data.Reading(channels=1, flip=False))
    spec = models.Spec("wrn-10-1", 4, (1, 8, 8), (DARK[0],), (DARK[1],))
    teacher, other = (models.build(spec, seed=seed) for seed in (0, 1))
    fit(Supervised(teacher), source, epochs=12, batch_size=16, lr=0.05)
    states = {"ema": other.network.state_dict(), "model": teacher.network.state_dict()}
    torch.save(states["model"], home / "teacher.pt")
    torch.save(states, home / "two.pt")
    (home / "names.txt").write_text("\n".join(NAMES) + "\n")
    words = ("--arch", "wrn-10-1", "--grey", "--no-flip", "--no-audit", "--mean", DARK[0],
             "--std", DARK[1], "--student", "wrn-10-1", "--method", "kd", "--epochs", 1,
             "--lr", 0.001)  # fmt: skip
    for file, folder, more in (
        ("two.pt", "all", ("--teacher-key", "model")),
        ("teacher.pt", "some", ("--class-names", home / "names.txt")),
    ):
        out = home / f"run-{folder}"
        command = ("distill", home / file, "--data", home / folder, "--out", out)
        cli.main([*map(str, (*command, *words, *more))])
    return home


@pytest.fixture
def verify(capsys, monkeypatch, home) -> Verify:
    monkeypatch.chdir(home)

    def verify(student: object, *words: object) -> tuple[int, dict[str, Any], str]:
        code, out, err = call(capsys, "verify", student, "--no-audit", "--json",
                              "--teacher-arch", "wrn-10-1", *words)  # fmt: skip
        return code, json.loads(out) if out else {}, err

    return verify


def recorded(run: Path) -> dict[str, int]:
    """Return the accuracy of the teacher in the results of a run."""
    row = read_json(run / "results.json")["runs"][0]
    return {"hits": round(row["acc"] * row["n_acc"]), "n": row["n_acc"]}


def without_record(run: Path, copy: Path) -> Path:
    """Copy a run as older versions wrote it, without the values in its results."""
    shutil.copytree(run, copy)
    (copy / "seal.json").unlink()
    results = read_json(copy / "results.json")
    for name in ("mean", "std"):
        del results["records"]["teacher_file"][name]
    write_json(copy / "results.json", results)
    return copy


@pytest.mark.parametrize("older", [False, True])
def test_the_teacher_of_a_run_is_read_as_in_the_run(older, verify, home, tmp_path):
    run = without_record(home / "run-all", tmp_path / "old") if older else Path("run-all")
    code, found, err = verify(run, "--data", "all", "--teacher", "two.pt")
    assert code == 0
    assert found["teacher"] == recorded(home / "run-all")
    assert found["teacher"]["hits"] > 40
    said, line = err.splitlines()
    assert said == (
        f"two.pt is the teacher of {run} and is read as there: --mean 0 --std 1 --teacher-key model"
    )
    assert line.startswith("teacher: two.pt, torch zip, ")
    assert line.endswith("; mean 0, std 1 (as in the run of the student)")
    assert found["teacher_file"] == {
        "path": "two.pt",
        "sha256": hashlib.sha256((home / "two.pt").read_bytes()).hexdigest(),
        "key": "model",
        "mean": [DARK[0]],
        "std": [DARK[1]],
        "normalisation": "as in the run of the student",
        "accuracy_in_run": found["teacher"],
    }


def test_the_outputs_of_the_teacher_of_a_run_are_those_of_the_run(verify, home):
    words = ("--data", "some", "--teacher", "teacher.pt")
    code, found, err = verify("run-some", *words)
    assert (code, found["teacher"]) == (0, recorded(home / "run-some"))
    assert "is read as there: --mean 0 --std 1, outputs 1 2\n" in err
    code, same, err = verify("run-some", *words, "--class-names", "names.txt")
    assert (code, same["teacher"]) == (0, found["teacher"])
    assert "is read as there: --mean 0 --std 1\n" in err


def test_flags_take_the_place_of_the_run_and_a_change_of_the_accuracy_is_told(verify, home):
    words = ("--data", "all", "--teacher", "two.pt")
    run = recorded(home / "run-all")
    code, found, err = verify("run-all", *words, "--teacher-key", "ema", "--mean", 0.9, "--std", 2)
    assert code == 0
    assert found["teacher"]["hits"] < run["hits"]
    assert found["teacher_file"]["key"] == "ema"
    assert found["teacher_file"]["normalisation"] == "given by the user"
    assert found["teacher_file"]["accuracy_in_run"] == run
    assert "is read as there" not in err
    warning = err.splitlines()[-1]
    assert warning.startswith("warning: the accuracy of the teacher is ")
    assert "on the same images in the run of the student" in warning
    assert warning.endswith("check --mean, --std, --teacher-key and --class-names")
    # The student alone has no run: the flags of the run give the same accuracy.
    code, found, err = verify("run-all/student.safetensors", *words, "--teacher-key", "model",
                              "--mean", *DARK[:1], "--std", *DARK[1:])  # fmt: skip
    assert (code, found["teacher"]) == (0, run)
    assert "warning" not in err
    assert found["teacher_file"]["accuracy_in_run"] is None


def test_another_teacher_is_not_read_as_that_of_the_run(verify):
    code, found, err = verify("run-all", "--data", "all", "--teacher", "teacher.pt")
    assert code == 0
    assert err.splitlines()[0].startswith("teacher: teacher.pt, ")
    assert err.splitlines()[0].endswith("(statistics of the data)")
    assert found["teacher_file"]["accuracy_in_run"] is None


def test_results_that_were_edited_do_not_say_how_the_teacher_is_read(verify, home, tmp_path):
    shutil.copytree(home / "run-all", tmp_path / "run")
    results = read_json(tmp_path / "run" / "results.json")
    results["records"]["teacher_file"]["mean"] = [0.9]
    write_json(tmp_path / "run" / "results.json", results)
    code, found, err = verify(tmp_path / "run", "--data", "all", "--teacher", "two.pt")
    assert code == 0
    assert "results.json is not the file that its run wrote; how the run read its teacher" in err
    assert found["teacher_file"]["normalisation"] == "statistics of the data"


@pytest.mark.parametrize("flags", [("--mean", 0.5), ("--std", 0.5), ("--teacher-key", "model")])
def test_flags_of_a_teacher_need_one_that_is_not_of_robustkd(flags, capsys, home):
    words = ("verify", home / "run-all", "--data", home / "all", "--no-audit", *flags)
    code, _, err = call(capsys, *words)
    assert (code, err) == (
        2,
        f"robustkd: {flags[0]} is given without --teacher; give both, or neither\n",
    )
    student = home / "run-all" / "student.safetensors"
    code, _, err = call(capsys, *words, "--teacher", student)
    assert code == 2
    assert f"{flags[0]} is given, but {student} is a file of robustkd, which states its own" in err


def test_the_accuracy_of_the_teacher_is_printed(capsys, home, monkeypatch):
    monkeypatch.chdir(home)
    words = ("verify", "run-all", "--data", "all", "--no-audit")
    _, out, _ = call(capsys, *words)
    line = next(line for line in out.splitlines() if line.startswith("       teacher: "))
    assert line.endswith("of 48 test images, in the results of the run")
    _, out, _ = call(capsys, *words, "--teacher", "two.pt", "--teacher-arch", "wrn-10-1")
    assert line.removesuffix(", in the results of the run") in out.splitlines()

"""``verify`` and others on folders of images: class order, Unicode, held-out images, outputs."""

from __future__ import annotations

import json
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustkd import cli, data, models
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

CLASSES = ("café", "dark", "grey")
LEVELS = (230, 30, 120)
DISTIL = ("--student", "wrn-10-1", "--method", "kd", "--epochs", 12, "--batch-size", 16)


def write_images(folder: Path, level: int, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for place in range(count):
        pixels = np.clip(level + random.integers(-20, 20, (8, 8)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{place:02}.png")


@pytest.fixture
def robustkd(capsys, monkeypatch, home):
    monkeypatch.chdir(home)
    return lambda *words: call(capsys, *words)


def call(capsys, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = 0
    try:
        cli.main([*map(str, words)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Two folders of images, runs on each, and teachers of several kinds."""
    home = tmp_path_factory.mktemp("home")
    for label, (name, level) in enumerate(zip(CLASSES, LEVELS, strict=True)):
        write_images(home / "flat" / name, level, 20, label)
        for split, count in (("train", 20), ("val", 12), ("test", 8)):
            write_images(home / "own" / split / name, level, count, 10 * label + count)
    source = data.open_source(str(home / "own"), reading=data.Reading(channels=1, flip=False))
    teacher = models.build(models.spec_for("wrn-10-1", source), seed=0)
    fit(Supervised(teacher), source, epochs=8, batch_size=16, lr=0.05)
    models.save(teacher, home / "teacher.safetensors")
    state = teacher.network.state_dict()
    # Its outputs are the classes in the order of names.txt.
    turned = {**state, **{name: state[name][[2, 0, 1]] for name in ("head.weight", "head.bias")}}
    torch.save(turned, home / "turned.pt")
    (home / "names.txt").write_text("grey\ncafé\ndark\n")
    (home / "blank.txt").write_text("\n\n")
    huge = {**state, "head.weight": state["head.weight"] * 1e38}
    torch.save(huge, home / "huge.pt")
    teacher.network.load_state_dict(huge)
    models.save(teacher, home / "huge.safetensors")
    words = ("--arch", "wrn-10-1", "--grey", "--no-flip", "--no-audit", *DISTIL)
    named = ("--class-names", home / "names.txt", "--mean", 0.5, "--std", 0.25)
    for folder, out, more in (("own", "run", named), ("flat", "held-out", named)):
        found = home / folder
        cli.main(
            [*map(str, ("distill", home / "turned.pt", "--data", found, *words, *more)),
             "--out", str(home / out)]
        )  # fmt: skip
    return home


def test_the_drop_is_measured_in_the_class_order_of_the_student(robustkd, home):
    words = ("verify", "run", "--data", "own", "--no-audit", "--json")
    beside = ("--teacher", "turned.pt", "--teacher-arch", "wrn-10-1")
    code, out, err = robustkd(*words, *beside)
    assert code == 0
    assert err.endswith("46 tensors matched; mean 0.5, std 0.25 (as in the run of the student)\n")
    assert json.loads(out)["teacher"] == {"hits": 24, "n": 24}
    # The names of this student are in another order.
    words = ("verify", "teacher.safetensors", "--data", "own", "--no-audit", *beside)
    code, out, err = robustkd(*words, "--max-drop", 0.1)
    assert (code, out) == (3, "")
    assert "its outputs seem to be in another order than the classes of the data" in err
    assert "the classes are those of the student: give the teacher that it was" in err
    assert "--class-names" not in err
    code, _, err = robustkd(*words)
    assert code == 0
    line, warning = err.splitlines()
    assert line.startswith("teacher: turned.pt, torch zip, ")
    assert warning.startswith("warning: teacher turned.pt: its outputs seem to be in another order")
    code, out, err = robustkd("evaluate", "turned.pt", "--arch", "wrn-10-1", "--grey",
                              "--mean", 0.5, "--std", 0.25, "--data", "own")  # fmt: skip
    assert code == 0
    assert "warning: " in err
    assert "in another order than the classes" in err
    code, _, err = robustkd("verify", "run", "--data", "own", "--teacher-arch", "wrn-10-1")
    assert (code, err) == (
        2,
        "robustkd: --teacher-arch is given without --teacher; give both, or neither\n",
    )


def test_a_teacher_without_class_names_is_measured_in_the_order_of_the_student(robustkd, home):
    spec = models.load(home / "teacher.safetensors").spec
    nameless = models.build(replace(spec, class_names=()), seed=0)
    nameless.network.load_state_dict(torch.load(home / "turned.pt"))
    models.save(nameless, home / "nameless.safetensors")
    words = ("--data", "own", "--no-audit", "--json", "--teacher", "nameless.safetensors")
    code, out, err = robustkd("verify", "run", *words)
    assert code == 0
    assert err.startswith("teacher: nameless.safetensors, a file of robustkd, ")
    assert json.loads(out)["teacher"] == {"hits": 24, "n": 24}
    code, _, err = robustkd("verify", "teacher.safetensors", *words, "--max-drop", 0.9)
    assert code == 3
    assert "in another order than the classes of the data" in err


def test_results_that_were_edited_are_not_used_and_a_report_of_them_warns(robustkd, home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    file = tmp_path / "run" / "results.json"
    words = ("verify", tmp_path / "run", "--data", "own", "--no-audit", "--max-drop", 0.99)
    assert robustkd(*words)[0] == 0
    content = json.loads(file.read_text())
    content["runs"][0]["acc"] = 0.5
    file.write_text(json.dumps(content))
    code, _, err = robustkd(*words)
    assert (code, err.splitlines()[-1]) == (
        3,
        f"robustkd: {file} is not the file that its run wrote; restore it, or measure the teacher "
        "with --teacher",
    )
    code, _, err = robustkd("report", tmp_path / "run")
    assert (code, err) == (0, f"warning: {file} is not the file that its run wrote\n")


def test_the_student_of_a_run_is_no_teacher(robustkd, home, tmp_path):
    words = ("verify", "run", "--data", "own", "--no-audit", "--json", "--teacher")
    code, _, err = robustkd(*words, "run")
    assert code == 3
    assert "run is the folder of a run, which has a student; give the teacher's file" in err
    # The folder of an attack has a teacher.
    shutil.copy(home / "teacher.safetensors", tmp_path)
    code, out, _ = robustkd(*words, tmp_path)
    assert (code, json.loads(out)["teacher"]) == (0, {"hits": 24, "n": 24})


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_target_is_left_out_in_any_form_of_unicode(form, robustkd, home, tmp_path):
    for name in CLASSES:
        shutil.copytree(home / "own/test" / name, tmp_path / unicodedata.normalize(form, name))
    target = unicodedata.normalize("NFD" if form == "NFC" else "NFC", "café")
    words = ("verify", "run", "--data", "own", "--no-audit", "--json", "--target", target)
    code, out, _ = robustkd(*words, "--triggered", tmp_path)
    assert (code, json.loads(out)["asr"]) == (0, {"hits": 0, "n": 16})


def test_triggered_images_are_read_in_folders_of_any_depth(robustkd, home, tmp_path):
    shutil.copytree(home / "own/test/dark", tmp_path / "dark")
    shutil.copytree(home / "own/test/grey", tmp_path / "dark" / "more" / "inner")
    words = ("verify", "run", "--data", "own", "--no-audit", "--target", "café")
    code, out, _ = robustkd(*words, "--triggered", tmp_path, "--json")
    assert (code, json.loads(out)["asr"]["n"]) == (0, 16)
    (tmp_path / "Grey").mkdir()
    code, out, err = robustkd(*words, "--triggered", tmp_path)
    assert (code, out) == (3, "")
    assert "has a folder 'Grey', which is no class of the model" in err
    # The folder of the target is left out only where it is looked for.
    shutil.copytree(home / "own/test", tmp_path / "inner" / "test")
    code, out, err = robustkd(*words, "--triggered", tmp_path / "inner")
    assert (code, out) == (3, "")
    assert (
        "has images of the class 'caf\\xe9' in 'test/caf\\xe9'; give the folder that holds" in err
    )


def test_the_accuracy_of_the_run_is_used_only_for_its_test_images(robustkd, home, tmp_path):
    words = ("verify", "run", "--no-audit", "--max-drop", 0.05)
    code, out, err = robustkd(*words, "--data", "own", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["teacher"] == {"hits": 24, "n": 24}
    shutil.copytree(home / "own", tmp_path / "own")
    for name, level in zip(CLASSES, (120, 230, 30), strict=True):
        shutil.rmtree(tmp_path / "own/test" / name)
        write_images(tmp_path / "own/test" / name, level, 8, 5)
    code, out, err = robustkd(*words, "--data", tmp_path / "own")
    assert (code, out) == (3, "")
    assert "the student have changed; measure the teacher with --teacher" in err
    code, out, _ = robustkd(*words[:-2], "--data", tmp_path / "own")
    assert code == 0
    assert "DROP not measured: the accuracy of the student was " in " ".join(out.split())
    code, out, _ = robustkd(*words, "--data", tmp_path / "own", "--teacher", "teacher.safetensors")
    assert code == 0
    assert "DROP   0.0 points" in out


def test_held_out_images_are_those_of_the_run(robustkd, home, tmp_path):
    held_out = json.loads((home / "held-out/split.json").read_text())["test"]
    shutil.copytree(home / "flat", tmp_path / "flat")
    for name, level in zip(CLASSES, LEVELS, strict=True):
        write_images(tmp_path / "flat" / name / "added", level, 10, 7)
    for student in ("held-out", "held-out/student.safetensors"):
        code, out, err = robustkd(
            "verify", student, "--data", tmp_path / "flat", "--no-audit", "--json"
        )
        assert code == 0
        assert json.loads(out)["accuracy"]["n"] == len(held_out)
        assert err == (
            f"the {len(held_out)} test and {len(held_out)} validation images are those of "
            "held-out/split.json, where it names them\n"
        )
    # A teacher is measured on the same images.
    beside = ("--teacher", "turned.pt", "--teacher-arch", "wrn-10-1", "--json")
    code, out, _ = robustkd(
        "verify", "held-out", "--data", tmp_path / "flat", "--no-audit", *beside
    )
    assert code == 0
    assert json.loads(out)["teacher"]["n"] == len(held_out)
    # Other data has other held-out images, but a part of them cannot be used.
    other = tmp_path / "other"
    for label, (name, level) in enumerate(zip(CLASSES, LEVELS, strict=True)):
        write_images(other / name / "new", level, 20, label)
    for data_of_others in (other, "own"):
        code, _, err = robustkd("verify", "held-out", "--data", data_of_others, "--no-audit")
        assert (code, err) == (0, "")
    (tmp_path / "flat" / held_out[0]).unlink()
    code, out, err = robustkd("verify", "held-out", "--data", tmp_path / "flat", "--no-audit")
    assert (code, out) == (3, "")
    assert "names 1 images that are not there" in err


@pytest.mark.parametrize("command", ["audit", "verify", "evaluate"])
def test_outputs_that_are_not_finite_are_reported_in_one_line(command, robustkd):
    code, out, err = robustkd(command, "huge.safetensors", "--data", "own")
    assert (code, out) == (3, "")
    assert err.startswith("robustkd: the outputs of the model are not finite on ")
    assert "images" in err
    assert err.count("\n") == 1


def test_a_teacher_whose_outputs_are_not_finite_is_refused_by_the_audit(robustkd):
    words = ("audit", "huge.pt", "--arch", "wrn-10-1", "--grey", "--mean", 0.5, "--std", 0.25)
    code, out, err = robustkd(*words, "--data", "own")
    assert (code, out) == (3, "")
    assert "its outputs are not finite on the validation images" in err


@pytest.mark.parametrize("names", ["blank.txt", "/dev/null"])
def test_a_list_without_class_names_is_reported_in_one_line(names, robustkd):
    code, _, err = robustkd("evaluate", "turned.pt", "--arch", "wrn-10-1", "--grey",
                            "--mean", 0.5, "--std", 0.25, "--data", "own",
                            "--class-names", names)  # fmt: skip
    assert code == 3
    assert err.count("\n") == 1
    assert "lacks the class" in err

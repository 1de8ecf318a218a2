"""``robustkd export`` as a user runs it, and the preprocessing stated in a student's file."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from robustkd import data, models
from robustkd.attacks import BadNets, save_trigger
from robustkd.evaluation.measurement import measure
from robustkd.export import run
from robustkd.export.weights import write_state_dict
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from tests.export.test_export import broken

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """Trained on digits, briefly."""
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    source = data.load("digits", train=300, validation=100, test=100)
    model = models.build(models.spec_for("wrn-10-1", source), seed=0)
    fit(Supervised(model), source, epochs=3, batch_size=32)
    models.save(model, path)
    return path


def test_export_prints_a_table_and_leaves_a_folder(robustkd, student, tmp_path):
    save_trigger(BadNets(size=3), 0, tmp_path / "trigger")
    command = ("export", student, "--data", "digits", "--trigger", "trigger", "--out", "out")
    code, out, err = robustkd(*command, "--no-int8")
    assert code == 0
    assert [line.partition(":")[0] for line in err.splitlines()] == ["ONNX", "measuring"]
    assert "77,562 parameters, 3.05 million MACs" in out
    assert "predicts the class of torch for 100.00% of 240 validation images" in out
    assert "Latency of one image on this machine: " in out
    assert "attack success could not" not in out
    assert out.endswith("Files: out\n")
    assert max(map(len, out.partition("77,562")[0].splitlines())) <= 80
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert kept == {"student.onnx", "student.pt2", "export.json"}
    assert json.loads((tmp_path / "out" / "export.json").read_text())["int8"] is None
    code, out, err = robustkd(*command)
    assert (code, out) == (2, "")
    assert err == "robustkd: output folder out is not empty; give a new one with --out\n"


@pytest.mark.slow
def test_a_file_that_is_not_the_student_is_refused(robustkd, student, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "write_onnx", broken)
    code, out, err = robustkd("export", student, "--data", "digits", "--out", "out")
    assert (code, out) == (5, "")
    assert err.splitlines()[-1].startswith("robustkd: student.onnx differs from the student: it ")
    assert len(err.splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [False, True])
def test_a_terminated_export_leaves_nothing(robustkd, student, monkeypatch, tmp_path, there):
    def terminated(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(run, "write_onnx", terminated)
    if there:
        (tmp_path / "out").mkdir()
    code, out, err = robustkd("export", student, "--data", "digits", "--out", "out")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "robustkd: interrupted"
    assert [path.name for path in tmp_path.rglob("*")] == ["out"] * there
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_mistakes_are_reported_in_one_line_and_leave_no_files(robustkd, student, tmp_path):
    save_trigger(BadNets(size=3), 10, tmp_path / "far")
    for arguments, code, message in (
        ((student, "--data", "digits", "--trigger", "far"), 3, "far does not fit 'digits': target"),
        (("none", "--data", "digits"), 3, "none does not exist; expected a model's file"),
        ((student, "--data", "digit"), 2, "unknown data source 'digit'"),
        ((student, "--data", "fashion-mnist"), 3, f"{student} expects images of shape"),
        ((student, "--data", "digits", "--trigger", "no"), 3, "no does not exist; check the path"),
        (
            (student, "--data", "digits", "--max-int8-drop", "1.5"),
            2,
            "--max-int8-drop is 1.5; expected a fraction from 0 to 1",
        ),
        (
            (student, "--data", "digits", "--max-int8-drop", "0.1", "--no-int8"),
            2,
            "--max-int8-drop is 0.1 and --no-int8 is given; expected one of them",
        ),
    ):
        found, out, err = robustkd("export", *arguments, "--out", "out")
        assert (found, out) == (code, ""), err
        assert err.startswith(f"robustkd: {message}")
        assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["far"]


@pytest.mark.parametrize("command", ["verify", "evaluate", "audit", "export"])
@pytest.mark.parametrize("name", ["shipped", "shipped/student.onnx", "shipped/student.pt2"])
def test_an_exported_model_is_never_loaded(robustkd, command, name, tmp_path):
    (tmp_path / "shipped").mkdir()
    for file in ("export.json", "student.onnx", "student.pt2"):
        (tmp_path / "shipped" / file).write_text("{}")
    out = ("--out", "out") if command == "export" else ()
    code, out, err = robustkd(command, name, "--data", "digits", *out)
    assert (code, out) == (3, "")
    assert err == (
        f"robustkd: {name} is an exported model, which only robustkd export measures; give the "
        "student.safetensors that was exported, or the folder of its run\n"
    )


@pytest.mark.parametrize("command", ["verify", "evaluate", "audit", "export", "distill"])
def test_an_exported_state_dict_is_called_one(robustkd, command, tmp_path):
    source = data.load("digits")
    spec = models.spec_for("timm/test_efficientnet", source)
    write_state_dict(models.build(spec, seed=0), tmp_path / "state_dict.safetensors")
    more = {"export": ("--out", "out"), "distill": ("--out", "out", "--student", "wrn-10-1")}
    code, out, err = robustkd(
        command, "state_dict.safetensors", "--data", "digits", *more.get(command, ())
    )
    assert (code, out) == (3, "")
    assert err == (
        "robustkd: state_dict.safetensors is a state dict for torchvision or timm, which robustkd "
        "export wrote; give the student.safetensors that was exported, or the folder of its run\n"
    )


@pytest.mark.parametrize("command", ["verify", "export"])
def test_a_teacher_in_place_of_a_student_is_told_the_commands_for_teachers(
    robustkd, command, tmp_path
):
    state = models.build(models.Spec("wrn-10-1", 10, (1, 8, 8)), seed=0).network.state_dict()
    torch.save(state, tmp_path / "t.pt")
    save_file({"weight": torch.ones(1)}, tmp_path / "t.safetensors")
    (tmp_path / "empty").mkdir()
    out = ("--out", "out") if command == "export" else ()
    for name, fact in (
        (
            "t.pt",
            "is no file that robustkd wrote, but a torch checkpoint, or another pickle or archive",
        ),
        ("t.safetensors", "has no 'robustkd' metadata"),
    ):
        code, _, err = robustkd(command, name, "--data", "digits", *out)
        assert code == 3
        assert err == (
            f"robustkd: {name} {fact}; expected a student that robustkd wrote: measure a teacher "
            "with robustkd evaluate or robustkd audit, and --arch\n"
        )
    code, _, err = robustkd(command, "empty", "--data", "digits", *out)
    assert (code, err) == (
        3,
        "robustkd: empty is a folder without student.safetensors; expected a student's file, or "
        "the folder of its run\n",
    )


def folder_of(digits: data.InMemory, path: Path) -> None:
    """Test images as large files, in folders whose sorted order is not that of the classes."""
    for split in ("train", "validation", "test"):
        held = getattr(digits, split)
        for row, (image, label) in enumerate(zip(held.images, held.labels, strict=True)):
            part = {"validation": "val"}.get(split, split)
            place = path / part / f"n{9 - int(label)}"
            place.mkdir(parents=True, exist_ok=True)
            wide = np.kron(image[0].numpy(), np.ones((2, 2), dtype=np.uint8))
            Image.fromarray(wide).save(place / f"{row}.png")


def test_the_file_of_a_student_states_how_images_are_read(robustkd, tmp_path):
    """Size, grey and the order of the classes: none of them is typed again."""
    source = data.load("digits", train=300, validation=40, test=100)
    named = replace(source, classes=tuple(f"n{9 - label}" for label in range(10)))
    model = models.build(models.spec_for("wrn-10-1", named), seed=0)
    fit(Supervised(model), named, epochs=3, batch_size=32)
    models.save(model, tmp_path / "student")
    folder_of(source, tmp_path / "images")
    code, out, err = robustkd("evaluate", "student", "--data", "./images", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["n_acc"] == 100
    # Resampling blurs a little; classes in another order would leave next to nothing.
    assert json.loads(out)["acc"] == pytest.approx(measure(model, named).acc.value, abs=0.1)
    assert json.loads(out)["acc"] > 0.5


def test_other_classes_are_refused(robustkd, student, tmp_path):
    source = data.load("digits", train=100, validation=20, test=20)
    folder_of(source, tmp_path / "images")
    code, _, err = robustkd("evaluate", student, "--data", "./images")
    assert code == 3
    assert "images/train lacks the class '0'" in err
    assert err.endswith("; add it, or use the data that the model was trained for\n")
    assert err.count("\n") == 1

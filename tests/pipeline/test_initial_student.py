"""Students that start from weights in a file: matching, normalisation, heads and resuming."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import timm
import torch

from robustkd import cli, data, models
from robustkd.core.errors import InputError
from robustkd.models.classifier import spec_for
from robustkd.pipeline.initial_student import initial_student
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.prepare import identity, identity_of_file
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

pytestmark = pytest.mark.usefixtures("few_digits")

CLEAN = data.load("digits", train=200, validation=60, test=50)


def build(seed: int, classes: int = 10) -> models.Classifier:
    return models.build(models.Spec("wrn-10-1", classes, CLEAN.image_shape), seed=seed)


def job(weights: Path | None, student: str = "wrn-10-1") -> DistillJob:
    return DistillJob(Path("teacher"), "wrn-10-1", student, student_weights=weights)


def plain(path: Path, model: models.Classifier, prefix: str = "module.") -> Path:
    state = model.network.state_dict()
    torch.save({"state_dict": {f"{prefix}{name}": value for name, value in state.items()}}, path)
    return path


def same(one: models.Classifier, other: models.Classifier, *, but: str = "none") -> bool:
    first, second = (model.network.state_dict() for model in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first if but not in name)


def test_without_a_file_it_is_the_fresh_network_of_the_seed():
    student, file = initial_student(job(None), CLEAN)
    assert same(student, build(0))
    assert (file, student.spec) == (None, spec_for("wrn-10-1", CLEAN))


def test_weights_of_any_trainer_are_matched_as_a_teacher_is(tmp_path):
    student, file = initial_student(job(plain(tmp_path / "w.pt", build(7))), CLEAN)
    assert same(student, build(7))
    assert student.training
    assert student.spec == spec_for("wrn-10-1", CLEAN)
    assert (file.key, file.normalisation) == ("state_dict", "statistics of the data")


def test_a_student_of_this_package_keeps_its_normalisation_and_gets_names(tmp_path):
    models.save(build(7), tmp_path / "w.safetensors")
    student, file = initial_student(job(tmp_path / "w.safetensors"), CLEAN)
    assert same(student, build(7))
    assert (student.spec.mean, student.spec.class_names) == ((0.5,), CLEAN.classes)
    assert file.normalisation == "the teacher's file"


@pytest.mark.parametrize("classes", [3, 100])
def test_a_head_of_other_classes_is_replaced_by_a_fresh_one(classes, tmp_path):
    path = plain(tmp_path / "w.pt", build(7, classes))
    student, file = initial_student(job(path), CLEAN)
    assert same(student, build(7, classes), but="head")
    assert torch.equal(student.network.head.weight, build(0).network.head.weight)
    assert torch.equal(student.network.head.bias, build(0).network.head.bias)
    assert file.ignored[0] == f"head of {classes} classes"


def test_a_student_of_this_package_gets_a_fresh_head_as_well(tmp_path):
    other = models.Spec(
        "wrn-10-1", 3, CLEAN.image_shape, (0.4,), (0.2,), class_names=("a", "b", "c")
    )
    start = models.build(other, seed=7)
    models.save(start, tmp_path / "w.safetensors")
    student, file = initial_student(job(tmp_path / "w.safetensors"), CLEAN)
    assert same(student, start, but="head")
    assert torch.equal(student.network.head.weight, build(0).network.head.weight)
    assert (student.spec.mean, student.spec.class_names) == ((0.4,), CLEAN.classes)
    assert file.ignored[0] == "head of 3 classes"


def test_weights_without_a_head_are_refused(tmp_path):
    state = build(7).network.state_dict()
    rest = {name: value for name, value in state.items() if "head" not in name}
    counter = {"last.num_batches_tracked": torch.tensor(3)}
    for number, tensors in enumerate((rest, {**rest, **counter})):
        torch.save(tensors, path := tmp_path / f"{number}.pt")
        with pytest.raises(InputError, match=r"has no head \(head.bias, head.weight\)"):
            initial_student(job(path), CLEAN)


def test_the_identity_of_a_run_has_the_statistics_of_the_data(tmp_path):
    models.save(build(7), tmp_path / "w.safetensors")
    with_weights = job(tmp_path / "w.safetensors")
    fresh = spec_for("wrn-10-1", CLEAN)
    student, file = initial_student(with_weights, CLEAN, fresh)
    assert student.spec.mean != fresh.mean
    assert identity(CLEAN, fresh)["mean"] == list(fresh.mean)
    assert identity_of_file(file, student.spec)["normalisation"] is None


def test_a_folder_of_the_hub_can_be_the_start(tmp_path):
    torch.manual_seed(3)
    network = timm.create_model("test_resnet", num_classes=6, in_chans=1)
    config = {"input_size": (1, 16, 16), "mean": (0.3,), "std": (0.4,)}
    timm.models.save_for_hf(network, str(tmp_path), safe_serialization=True, data_config=config)
    student, file = initial_student(job(tmp_path, "timm/test_resnet"), CLEAN)
    assert (student.spec.mean, student.spec.std) == ((0.3,), (0.4,))
    assert torch.equal(student.network.layer1[0].conv1.weight, network.layer1[0].conv1.weight)
    assert (file.ignored[0], file.name) == ("head of 6 classes", "model.safetensors")
    assert identity_of_file(file, student.spec)["normalisation"] == [[0.3], [0.4]]


def test_weights_of_another_architecture_are_refused(tmp_path):
    other = models.build(models.Spec("resnet-8", 10, CLEAN.image_shape), seed=0)
    with pytest.raises(InputError, match="does not fit the architecture 'wrn-10-1'"):
        initial_student(job(plain(tmp_path / "w.pt", other)), CLEAN)


@pytest.mark.slow
def test_a_run_prints_and_records_the_weights_and_can_be_resumed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = build(1)
    fit(Supervised(teacher), CLEAN, epochs=4, batch_size=32)
    models.save(teacher, "t.safetensors")
    weights = plain(tmp_path / "w.pt", build(7, 3))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    words = ["distill", "t.safetensors", "--arch", "wrn-10-1", "--data", "digits", "--method", "kd"]
    words += [
        "--student",
        "wrn-10-1",
        "--student-weights",
        "w.pt",
        "--augment",
        "none",
        "--no-audit",
    ]
    cli.main([*words, "--epochs", "1", "--lr", "0.01", "--out", "run"])
    said = capsys.readouterr().err
    found = re.search(r"student: starts from w\.pt, torch zip, .* sha256 (\w{12}); .*", said)
    assert found[1] == digest[:12]
    assert "head of 3 classes" in found[0]
    results = json.loads(Path("run/results.json").read_text())
    assert results["records"]["student_weights"]["sha256"] == digest
    assert results["records"]["augmentation"]["used"] == "CropFlip(pad=0, flip=False)"
    assert results["config"]["student_weights_sha256"] == digest
    assert digest in Path("run/report.html").read_text()
    config = Path("run/config.yaml").read_text()
    assert f"student_weights: {weights}" in config
    assert "augment: none" in config
    cli.main(["distill", "--resume", "run"])
    assert "already finished" in capsys.readouterr().err
    # Other weights under the same name are another run.
    plain(weights, build(8, 3))
    with pytest.raises(SystemExit):
        cli.main(["distill", "--resume", "run"])
    assert "run was started with student weights sha256" in capsys.readouterr().err

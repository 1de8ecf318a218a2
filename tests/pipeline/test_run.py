"""From a teacher's file to a folder with student, figures and report."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

import robustkd
from robustkd import cli, data, models, report
from robustkd.core.errors import InputError, TrainingError, UsageError, WriteError
from robustkd.core.method_settings import DetoxSettings
from robustkd.core.methods import METHODS, Method
from robustkd.models import complexity
from robustkd.models.complexity import operations
from robustkd.pipeline import api, experiments, run_files, run_folder
from robustkd.pipeline import run as main_line
from robustkd.pipeline import student as making
from robustkd.pipeline.facts import measure_clean
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.prepare import identity
from robustkd.pipeline.run import distill_file
from robustkd.pipeline.student import make_student
from robustkd.student import distillation
from robustkd.student.distillation import distill
from robustkd.training.config import TrainingConfig, TrainingOptions
from robustkd.training.inference import accuracy_on
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from robustkd.training.recipes import with_defaults
from tests.data.images.image_files import write_splits
from tests.marks import slow

CLEAN = data.load("digits", train=200, validation=60, test=50)
FILES = [
    ".lock",
    "MODEL_CARD.md",
    "checkpoint.safetensors",
    "config.yaml",
    "detoxified.safetensors",
    "environment.json",
    "metrics.jsonl",
    "report.html",
    "results.json",
    "run.json",
    "run.log",
    "seal.json",
    "student.safetensors",
    "summary.md",
    "tensorboard",
]


def build(seed: int, arch: str = "wrn-10-1") -> models.Classifier:
    mean, std = models.pixel_statistics(CLEAN)
    return models.build(models.Spec(arch, 10, CLEAN.image_shape, mean, std), seed=seed)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    teacher = build(1)
    fit(Supervised(teacher), CLEAN, epochs=4, batch_size=32)
    models.save(teacher, path)
    return path


BRIEF = TrainingConfig(epochs=1)
SLOW = ("paper-0.9", "paper-perturbed", "default-perturbed", "both")


def run(
    teacher_file: Path,
    out: Path,
    *,
    clean=CLEAN,
    training=None,
    resume=False,
    audited=False,
    **changes,
) -> dict[str, Any]:
    training = TrainingConfig(**(training or {"epochs": 1, "batch_size": 64}))
    settings = {"arch": "wrn-10-1", "student": "wrn-10-1", "method": "ofd"} | changes
    job = DistillJob(teacher_file, training=training, **settings)
    return distill_file(job, clean, out, resume=resume, audited=audited).content()


@pytest.fixture(scope="module")
def finished(teacher_file, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "both"
    how = METHODS["both"]
    brief = replace(how, detox=replace(how.detox, steps=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "both", brief)
        return out, run(teacher_file, out, method="both", seed=5)


def test_the_folder_is_complete_and_the_results_are_those_on_disk(finished):
    out, results = finished
    assert sorted(path.name for path in out.iterdir()) == FILES
    # JSON knows no tuples.
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == results["records"]["epochs"]
    assert "RobustKD" in (out / "report.html").read_text()


def test_named_taps_are_cleaned_and_distilled(teacher_file, tmp_path, monkeypatch):
    named = ("network.groups.1.0.bn1", "network.bn")
    brief = replace(METHODS["paper"], detox=replace(METHODS["paper"].detox, steps=1, raises=0))
    monkeypatch.setitem(METHODS, "paper", brief)
    made: list[tuple[str, ...]] = []
    paired = distillation.pair_of

    def watched(student, student_taps, *others, **settings):
        made.append(student_taps)
        return paired(student, student_taps, *others, **settings)

    monkeypatch.setattr(distillation, "pair_of", watched)
    taps = {"teacher_taps": named, "student_taps": named[1:]}
    results = run(teacher_file, tmp_path / "run", method="paper", **taps)
    assert tuple(results["records"]["detox"]["stages"]) == named
    # Of two of the teacher's and one of the student's, the last of each.
    assert made == [named[1:]]


def test_the_report_reads_what_was_measured(finished, teacher_file):
    out, results = finished
    rows = report.read(out).runs
    assert [(row.method, row.asr, row.ra) for row in rows] == [
        ("teacher", None, None),
        ("both", None, None),
    ]
    saved = (models.load(teacher_file), models.load(out / "student.safetensors"))
    for row, model in zip(rows, saved, strict=True):
        measured = accuracy_on(model, CLEAN, "test")
        assert (row.acc, row.n_acc) == (measured.value, 50)
        assert row.params == models.parameters(model)
        assert (row.data, row.pair, row.seed) == ("digits", "wrn-10-1 to wrn-10-1", 5)
    assert rows[1].seconds > 0
    assert results["config"] == {
        "arch": "wrn-10-1",
        "student": "wrn-10-1",
        "method": "both",
        "data": "digits",
        "seed": 5,
        "training": {"epochs": 1, "batch_size": 64, "lr": 0.1},
    }


def test_the_results_have_the_accuracy_of_each_class_and_the_sizes(finished, teacher_file):
    out, results = finished
    records, rows = results["records"], results["runs"]
    by_class = records["by_class"]
    assert by_class["images"] == CLEAN.test.labels.bincount(minlength=10).tolist()
    for who, row in zip(("teacher", "student"), rows, strict=True):
        assert sum(by_class[who]) / 50 == row["acc"]
    student = out / "student.safetensors"
    macs = models.macs(models.load(student), CLEAN.image_shape)
    assert records["networks"] == {
        "teacher": {"bytes": teacher_file.stat().st_size, "macs": macs},
        "student": {"bytes": student.stat().st_size, "macs": macs},
    }
    assert records["data"] == {
        "shape": list(CLEAN.image_shape),
        **{"train": 200, "validation": 60, "test": 50},
    }


def test_the_texts_can_be_written_again(finished, tmp_path):
    out, _ = finished
    for path in report.write_report(out, tmp_path / "again"):
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_operations_that_cannot_be_counted_do_not_stop_a_run(monkeypatch):
    def uncountable(*_: object) -> int:
        raise NotImplementedError("an operation of the user's own")

    monkeypatch.setattr(complexity, "macs", uncountable)
    assert operations(build(1), CLEAN.image_shape) is None
    assert measure_clean(build(1), CLEAN).acc == accuracy_on(build(1), CLEAN, "test")


def test_the_results_describe_the_file_of_the_teacher(finished, teacher_file):
    _, results = finished
    facts = results["records"]["teacher_file"]
    content = teacher_file.read_bytes()
    assert facts["sha256"] == hashlib.sha256(content).hexdigest()
    assert (facts["name"], facts["bytes"]) == (teacher_file.name, len(content))
    assert facts["normalisation"] == "the teacher's file"


def test_a_teacher_without_normalisation_uses_that_of_the_data(teacher_file, tmp_path):
    trained = models.load(teacher_file)
    torch.save(trained.network.state_dict(), tmp_path / "plain.pt")
    results = run(tmp_path / "plain.pt", tmp_path / "run", method="no-teacher")
    assert results["records"]["teacher_file"]["normalisation"] == "statistics of the data"
    assert results["runs"][0]["acc"] == accuracy_on(trained, CLEAN, "test").value


def test_the_method_both_cleans_and_hardens(finished):
    _, results = finished
    detox = results["records"]["detox"]
    assert len(detox["stages"]) == len(detox["mean_mask"]) == 3
    assert "harden" in results["records"]["epochs"][0]
    assert results["records"]["classes"] == [str(digit) for digit in range(10)]


def test_no_file_of_a_run_mentions_a_trigger(finished):
    out, results = finished
    keys = re.findall(r'"([^"]+)":', json.dumps(results))
    assert not [key for key in keys if re.search("trigger|target|poison", key)]
    assert all(row["attack"] == "trigger unknown" for row in results["runs"])
    student = (out / "student.safetensors").read_bytes()
    assert not re.search(rb"trigger|target|poison|teacher\.", student)


@pytest.mark.slow  # files of one seed are compared by "Python and the command" as well
def test_the_same_seed_gives_the_same_student_file(teacher_file, tmp_path):
    def student(name: str, seed: int) -> bytes:
        run(teacher_file, tmp_path / name, method="kd", seed=seed)
        return (tmp_path / name / "student.safetensors").read_bytes()

    one = student("one", 2)
    assert student("same", 2) == one
    # The file names its seed, so the weights are compared.
    student("other", 3)
    weights = [
        models.load(tmp_path / name / "student.safetensors").network.stem.weight
        for name in ("one", "other")
    ]
    assert not torch.equal(*weights)


def test_a_baseline_runs_as_well(teacher_file, tmp_path):
    results = run(teacher_file, tmp_path, method="no-teacher")
    assert [row["method"] for row in results["runs"]] == ["teacher", "no-teacher"]
    assert "detox" not in results["records"]


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


# make_student, below it.


def made(how: Method, **changes):
    teacher = build(1)
    settings = {"training": BRIEF, "detoxing": {"steps": 2}}
    return make_student(teacher, build(0), CLEAN, how, **(settings | changes))


@pytest.mark.parametrize(
    "name",
    [slow(name) if name in SLOW else name for name in METHODS],
)
def test_every_preset_makes_a_student(name):
    found = made(METHODS[name])
    assert not any(module.training for module in found.student.modules())
    assert (found.detoxified is not None) == (METHODS[name].detox is not None)
    assert ("detox" in found.record) == (METHODS[name].detox is not None)
    assert ("harden" in found.record["epochs"][0]) == (METHODS[name].hardening is not None)
    assert set(METHODS[name].losses) <= set(found.record["epochs"][0])
    json.dumps(found.record)


@pytest.mark.parametrize("name", list(METHODS))
def test_the_student_learns_from_the_cleaned_teacher_alone(name, monkeypatch):
    """The teacher is the cleaned one if the preset cleans, and otherwise the given one."""
    teachers = []

    def watched(student, clean, *, teacher, **settings):
        teachers.append(teacher)
        return distill(student, clean, teacher=teacher, **settings)

    monkeypatch.setattr(making, "distill", watched)
    how, given = METHODS[name], build(1)
    settings = {"training": replace(BRIEF, batch_size=100), "detoxing": {"steps": 1}}
    found = make_student(given, build(0), CLEAN, how, **settings)
    (teacher,) = teachers
    assert teacher is (found.detoxified if how.detox else given if how.losses else None)


def test_what_depends_on_the_data_cannot_change_the_method():
    """A mask of at most 0.01; the first optimiser step alone goes further."""
    how = Method("", losses={"kd": 1.0}, detox=DetoxSettings(cap=0.01, lr=0.5))
    found = made(how, detoxing={"steps": 1})
    assert max(found.record["detox"]["mean_mask"]) <= 0.01
    with pytest.raises(UsageError, match=r"^cap is set by the method; expected one of variance_w"):
        made(how, detoxing={"steps": 1, "cap": 1.0})


def test_the_untrusted_teacher_is_not_changed():
    teacher = build(1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    settings = {"training": BRIEF, "detoxing": {"steps": 1}}
    make_student(teacher, build(0), CLEAN, METHODS["default"], **settings)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


# Interrupted and resumed.


def interrupted(teacher_file: Path, out: Path, wants: int, **changes) -> str:
    """What a run says that is interrupted when the loop asks for the ``wants``-th time."""
    asked = iter(range(wants))

    def is_due(found: run_folder.Run) -> bool:
        found.interrupts.asked = next(asked, None) is None
        return found.interrupts.asked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder.Run, "is_due", is_due)
        with pytest.raises(KeyboardInterrupt) as stop:
            run(teacher_file, out, **changes)
    return str(stop.value)


@pytest.mark.slow
def test_detoxification_is_not_repeated(finished, teacher_file, tmp_path, monkeypatch):
    how = METHODS["both"]
    brief = replace(how, detox=replace(how.detox, steps=2))
    monkeypatch.setitem(METHODS, "both", brief)
    out, again = tmp_path / "run", {"method": "both", "seed": 5}
    said = interrupted(teacher_file, out, 2, **again)
    assert said == f"interrupted; resume with: robustkd distill --resume {out}"
    with monkeypatch.context() as patch:
        patch.setattr(making, "detoxify", lambda *_, **__: pytest.fail("was repeated"))
        results = run(teacher_file, out, **again, resume=True)
    whole, expected = finished
    for name in ("student.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert results["records"]["detox"] == json.loads(json.dumps(expected["records"]["detox"]))
    assert sorted(path.name for path in out.iterdir()) == FILES


@pytest.mark.slow
def test_a_kill_within_detoxification_restarts_it(finished, teacher_file, tmp_path, monkeypatch):
    how = METHODS["both"]
    brief = replace(how, detox=replace(how.detox, steps=2))
    monkeypatch.setitem(METHODS, "both", brief)
    out, again = tmp_path / "run", {"method": "both", "seed": 5}

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(making, "detoxify", killed)
        with pytest.raises(KeyboardInterrupt):
            run(teacher_file, out, **again)
    run(teacher_file, out, **again, resume=True)
    student = (out / "student.safetensors").read_bytes()
    assert student == (finished[0] / "student.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("module", "name"),
    [(models, "save"), slow(main_line.Results, "write"), slow(report, "write_report")],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.slow
def test_a_kill_after_the_training_costs_no_training(
    module, name, teacher_file, tmp_path, monkeypatch
):
    run(teacher_file, tmp_path / "whole")
    out = tmp_path / "run"
    real, calls = getattr(module, name), []

    def killed(path, *arguments, **settings):
        # Files that are written when the run begins are not meant.
        if (out / run_files.CHECKPOINT).exists():
            raise KeyboardInterrupt
        return real(path, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            run(teacher_file, out)
    monkeypatch.setattr(run_folder, "_KEEP_EVERY", 0.0)
    monkeypatch.setattr(run_folder.Run, "save", lambda *_: calls.append("kept"))
    results = run(teacher_file, out, resume=True)
    assert not calls
    assert (out / "student.safetensors").read_bytes() == (
        tmp_path / "whole" / "student.safetensors"
    ).read_bytes()
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))


@pytest.mark.slow
def test_the_training_is_saved_at_intervals(teacher_file, tmp_path, monkeypatch):
    """States are stored at an interval of some seconds within an epoch, and after each epoch."""
    steps = []
    real = run_folder.Run.save

    def watched(found, state):
        steps.append((state.values["epoch"], state.values["taken"]))
        real(found, state)

    monkeypatch.setattr(run_folder.Run, "save", watched)
    run(teacher_file, tmp_path / "seldom", training={"epochs": 2, "batch_size": 64})
    assert steps == [(1, 0), (2, 0)]
    steps.clear()
    monkeypatch.setattr(run_folder, "_KEEP_EVERY", 0.0)
    run(teacher_file, tmp_path / "often", training={"epochs": 1, "batch_size": 64})
    assert steps == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]


def test_other_data_is_refused(teacher_file, tmp_path):
    interrupted(teacher_file, tmp_path, 1)
    other = data.load("digits", train=210, validation=60, test=50)
    message = (
        f"{tmp_path} was started with data sizes {{'train': 200, 'validation': 60, 'test': 50}}, "
        "now it is {'train': 210, 'validation': 60, 'test': 50}; use the same, or start a new "
        "run with --out"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run(teacher_file, tmp_path, clean=other, resume=True)


def test_the_same_images_mirrored_or_not_are_other_data():
    """Otherwise, resuming with ``--no-flip`` would give a student that nobody can reproduce."""
    spec = build(0).spec
    again = data.load("digits", train=200, validation=60, test=50)
    assert identity(again, spec) == identity(CLEAN, spec)
    mirrored = replace(again, augmentation=replace(again.augmentation, flip=True))
    assert identity(mirrored, spec) != identity(CLEAN, spec)


# From Python.


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


def test_ignored_files_are_reported_and_recorded(teacher_file, tmp_path):
    class Folder(type(CLEAN)):
        skipped: ClassVar = {".txt": 2, "folders": 1}

    clean = Folder(**{f.name: getattr(CLEAN, f.name) for f in fields(CLEAN) if f.init})
    lines: list[str] = []
    job = DistillJob(
        teacher_file, arch="wrn-10-1", student="wrn-10-1", method="no-teacher", training=BRIEF
    )
    results = distill_file(job, clean, tmp_path / "run", audited=False, tell=lines.append)
    assert lines[1] == (
        "data: left out of digits, since they are not images of a class: 2 .txt, 1 folders"
    )
    assert results.records["left_out"] == {".txt": 2, "folders": 1}

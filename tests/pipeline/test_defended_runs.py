"""Runs with a defence of the registry, on the teacher or on the student."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustkd import data, models, report
from robustkd.core.errors import InputError, UsageError
from robustkd.pipeline import dry_run
from robustkd.pipeline import run as main_line
from robustkd.pipeline import student as making
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.run import distill_file
from robustkd.pipeline.run_files import CHECKPOINT
from robustkd.report.command import repeating
from robustkd.teacher.defences.fine_tuning import FineTuning
from robustkd.teacher.defences.registry import DEFENCES
from robustkd.teacher.defences.tuning import Tuning
from robustkd.training.config import TrainingConfig
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from tests.marks import slow

CLEAN = data.load("digits", train=100, validation=40, test=40)
BRIEF = TrainingConfig(epochs=1, batch_size=50)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    short = FineTuning(Tuning(epochs=1, lr=0.05, batch_size=50))
    monkeypatch.setitem(DEFENCES, "ft", replace(DEFENCES["ft"], defence=short))


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    teacher = models.build(models.Spec("wrn-10-1", 10, CLEAN.image_shape), seed=1)
    fit(Supervised(teacher), CLEAN, epochs=6, batch_size=25)
    models.save(teacher, path)
    return path


def job_of(teacher_file: Path, **changes: object) -> DistillJob:
    settings = {"arch": "wrn-10-1", "student": "wrn-10-1", "method": "kd", "training": BRIEF}
    return DistillJob(teacher_file, **(settings | {"defence": "ft"} | changes))


def run(teacher_file: Path, out: Path, *, resume: bool = False, **changes: object):
    job = job_of(teacher_file, **changes)
    flags = {"teacher": str(teacher_file), "data": "digits", **job.settings()}
    told: list[str] = []
    results = distill_file(
        job, CLEAN, out, config=flags, resume=resume, audited=False, tell=told.append
    )
    return results, told


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


@pytest.mark.parametrize(
    ("on", "name", "label"),
    [
        ("teacher", "teacher-ft+kd", "ft on teacher (kd)"),
        slow("student", "kd+student-ft", "ft on student (kd)"),
    ],
)
def test_a_run_records_what_was_cleaned_and_keeps_it(
    on, name, label, teacher_file, tmp_path, monkeypatch
):
    teachers = []

    def watched(student, clean, *, teacher, **settings):
        teachers.append(teacher)
        return real(student, clean, teacher=teacher, **settings)

    real = making.distill
    monkeypatch.setattr(making, "distill", watched)
    results, told = run(teacher_file, tmp_path / "run", on=on)
    assert [row.method for row in results.runs] == ["teacher", name]
    record = results.records["defence"]
    assert (record["name"], record["on"]) == ("ft", on)
    assert record["settings"]["tuning"]["epochs"] == 1
    assert told[-1].startswith("method: ")
    assert told[-1] == f"method: {job_of(teacher_file, on=on).how.summary}"
    cleaned = models.load(tmp_path / "run" / f"cleaned-{on}.safetensors")
    student = models.load(tmp_path / "run" / "student.safetensors")
    given = models.load(teacher_file)
    assert same(teachers[0], cleaned if on == "teacher" else given)
    assert same(student, cleaned) is (on == "student")
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert f"defence: ft\n'on': {on}\n" in config
    page = (tmp_path / "run" / "report.html").read_text()
    assert label in page
    assert f"ft on the {on}: fine-tuning on clean images" in page
    assert f" --defence ft --on {on} " in repeating(results, tmp_path / "run")
    assert "the student of ft on" in report.headline(report.aggregate(results.runs)).lower()


@pytest.mark.parametrize("on", [slow("teacher"), slow("student")])
def test_a_run_killed_during_or_after_cleaning_gives_the_same_student_when_resumed(
    on, teacher_file, tmp_path, monkeypatch
):
    run(teacher_file, tmp_path / "whole", on=on)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(making, "clean_network", killed)
        with pytest.raises(KeyboardInterrupt, match="resume with: robustkd distill --resume"):
            run(teacher_file, out, on=on)
    assert (out / CHECKPOINT).exists() is (on == "student")
    # The second process cleans, and is killed before it writes the results.
    with monkeypatch.context() as patch:
        patch.setattr(main_line, "write_results", killed)
        with pytest.raises(KeyboardInterrupt):
            run(teacher_file, out, on=on, resume=True)
    # The third one repeats neither.
    with monkeypatch.context() as patch:
        patch.setattr(making, "clean_network", lambda *_, **__: pytest.fail("was repeated"))
        results, _ = run(teacher_file, out, on=on, resume=True)
    assert results.records["defence"]["accuracy_after"] <= 1
    name = "student.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_cleaned_network_of_somebody_else_is_refused(teacher_file, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(making, "distill", killed)
        with pytest.raises(KeyboardInterrupt):
            run(teacher_file, out)
    (out / "cleaned-teacher.safetensors").write_bytes(teacher_file.read_bytes())
    with pytest.raises(
        InputError, match=r"cleaned-teacher.safetensors was not written by this run"
    ):
        run(teacher_file, out, resume=True)


def test_another_defence_is_another_run(teacher_file, tmp_path, monkeypatch):
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "clean_network", killed)
    with pytest.raises(KeyboardInterrupt):
        run(teacher_file, tmp_path / "run")
    with pytest.raises(UsageError, match="was started with settings defence 'ft', now it is 'nad'"):
        run(teacher_file, tmp_path / "run", resume=True, defence="nad")


@pytest.mark.parametrize("on", ["teacher", slow("student")])
def test_a_dry_run_shows_the_cleaning(on, teacher_file):
    plan = dry_run.rehearse(job_of(teacher_file, on=on), CLEAN)
    phase = plan[f"clean the {on}"]
    assert phase["steps"] == 2
    assert phase["seconds"] == phase["steps"] * phase["seconds per step"] > 0
    assert plan["estimate"]["method"] == job_of(teacher_file, on=on).name
    order = list(plan)
    assert (order.index(f"clean the {on}") < order.index("distil")) is (on == "teacher")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defence": "ftsam"}, "defence is 'ftsam'; did you mean 'ft-sam'?"),
        ({"method": "teacher-nadd+kd", "defence": None}, "defence is 'nadd'; did you mean 'nad'?"),
        ({"method": "paper", "defence": "detox"}, "method 'paper' detoxifies the teacher already"),
        ({"method": "randaugment", "augment": "none"}, "method 'randaugment' uses 'randaugment'"),
    ],
)
def test_combinations_that_do_not_fit_are_refused_before_anything_is_read(changes, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        job_of(Path("none"), **changes)


def test_random_augmentation_and_a_defence_without_training(teacher_file, tmp_path):
    how = {"method": "randaugment", "defence": "clp", "on": "student"}
    results, _ = run(teacher_file, tmp_path / "run", **how)
    assert results.records["augmentation"]["named"] == "randaugment"
    assert json.loads(json.dumps(results.records["defence"])) == results.records["defence"]

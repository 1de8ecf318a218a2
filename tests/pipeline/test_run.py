"""From a teacher's file to a folder with student, figures and report."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import fields, replace
from typing import ClassVar

import pytest
import torch

from robustkd import models, report
from robustkd.core.methods import METHODS
from robustkd.models import complexity
from robustkd.models.complexity import operations
from robustkd.pipeline.facts import measure_clean
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.run import distill_file
from robustkd.student import distillation
from robustkd.training.config import TrainingConfig
from robustkd.training.inference import accuracy_on
from tests.pipeline.runs import CLEAN, FILES, build, run

BRIEF = TrainingConfig(epochs=1)


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

"""The audit of teacher and student at the end of a run."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from robustkd import cli, data
from robustkd.core.errors import TrainingError
from robustkd.evaluation.audit import Effort, Verdict, references, run, search
from robustkd.pipeline import audits
from robustkd.report.arrays import read_arrays
from robustkd.report.audits import FAMILIES
from robustkd.training.inference import AT_ONCE, batch_size_for
from tests.digits_network import write_network

pytestmark = pytest.mark.usefixtures("few_digits")
TINY = Effort(
    strengths=(0.5,),
    steps=2,
    batch=4,
    held_out=6,
    references=1,
    reference_images=60,
    validation=60,
    accuracy_images=60,
    brief=True,
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return write_network(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


@pytest.fixture
def distil(teacher, capsys, monkeypatch, tmp_path):
    """Distils with an audit of little effort, and returns the words on the screen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("robustkd.evaluation.audit.QUICK", TINY)
    monkeypatch.setattr(run, "QUICK", TINY)
    words = ["distill", str(teacher), "--arch", "wrn-10-1", "--student", "wrn-10-1"]
    words += ["--data", "digits", "--method", "no-teacher", "--epochs", "1"]

    def call(*flags: str, out: str = "run", command: tuple[str, ...] = tuple(words)) -> str:
        capsys.readouterr()
        folder = [] if "--resume" in command else ["--out", out]
        cli.main([*command, *folder, *flags])
        return capsys.readouterr().out

    return call


def test_both_networks_are_audited_beside_the_same_references(distil, tmp_path, monkeypatch):
    trained = []
    real = references.fit
    monkeypatch.setattr(references, "fit", lambda *a, **k: trained.append(1) or real(*a, **k))
    out = distil()
    assert len(trained) == TINY.references
    record = json.loads((tmp_path / "run" / "results.json").read_text())["records"]["audit"]
    assert set(record) == {"teacher", "student", "seconds"}
    saved = read_arrays(tmp_path / "run")
    assert set(saved) == {f"audit/{who}/{when}" for who in TWO for when in ("before", "after")}
    for who in TWO:
        before, after = (saved[f"audit/{who}/{when}"] for when in ("before", "after"))
        assert before.shape == after.shape == (6, 1, 16, 16)
        assert np.abs(after - before).max() > 0
        assert record[who]["evidence"]["led share"]["member"]["family"] in search.FAMILIES
        assert len(record[who]["pictures"]["before"]) == 6
    *_, teacher, student, advice, command = out.splitlines()
    assert teacher.startswith("Audit of the teacher: ")
    assert student.startswith("Audit of the student: ")
    assert advice.startswith("Next: ")
    assert command.startswith("  robustkd distill --config run/config.yaml ")
    assert "clean" not in (teacher + student + advice).lower()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Audit: evidence of an unknown backdoor" in page
    assert page.count("difference, amplified") == 2 * 7
    assert teacher.partition(": ")[2] in page
    # A finished run says the same again.
    assert distil(command=("distill", "--resume", "run")) == out


TWO = ("teacher", "student")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TrainingError("the loss is <nan>\nand more"), "the loss is <nan> and more"),
        (MemoryError("no room"), "MemoryError: no room"),
    ],
)
def test_a_failure_is_recorded_and_an_unexpected_one_logged_in_full(
    error, reason, monkeypatch, caplog
):
    monkeypatch.setattr(audits, "_audits", Mock(side_effect=error))
    network = nn.Identity()
    found = audits.audit_both(network, network, data.load("digits"))
    assert (found.record, found.arrays) == ({"failed": reason}, {})
    assert ("Traceback" in caplog.text) == isinstance(error, MemoryError)


@pytest.mark.slow
def test_a_run_ends_well_when_its_audit_fails(distil, tmp_path, monkeypatch):
    monkeypatch.setattr(audits, "_audits", Mock(side_effect=MemoryError("no room")))
    out = distil()
    assert "The audit could not be made (MemoryError: no room)." in out
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"student.safetensors", "results.json", "report.html"} <= made
    assert "arrays.npz" not in made


@pytest.mark.slow
def test_the_student_and_the_exit_code_do_not_depend_on_the_audit(distil, tmp_path, monkeypatch):
    suspicious = Verdict("suspicious", 3, 0.001, "led share")
    monkeypatch.setattr(run, "combine", lambda *_, **__: suspicious)
    assert "Audit of the student: suspicious; suspected target class: 3" in distil()
    distil("--no-audit", out="other")
    students = [tmp_path / name / "student.safetensors" for name in ("run", "other")]
    assert students[0].read_bytes() == students[1].read_bytes()


def test_the_report_describes_every_family():
    described = tuple(FAMILIES)
    assert set(described[: len(search.FAMILIES)]) == set(search.FAMILIES)
    # Reports of former audits can be made again.
    assert described[len(search.FAMILIES) :] == ("generator",)


def test_large_images_pass_in_smaller_parts_and_are_shown_small():
    assert batch_size_for((3, 64, 64), AT_ONCE) == 250
    assert batch_size_for((3, 1024, 1024), AT_ONCE) == 8
    from robustkd.evaluation.audit.pictures import _small

    assert _small(torch.rand(2, 3, 224, 160)).shape == (2, 3, 75, 54)
    assert _small(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)

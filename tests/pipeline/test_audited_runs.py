"""The audit of teacher and student at the end of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustkd import cli, data, models
from robustkd.core.errors import TrainingError
from robustkd.evaluation.audit import Effort, references, run, search
from robustkd.pipeline import audits
from robustkd.report.arrays import read_arrays
from robustkd.report.audits import FAMILIES
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

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
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    source = data.load("digits", train=300)
    model = models.build(models.spec_for("wrn-10-1", source), seed=0)
    fit(Supervised(model), source, epochs=3, batch_size=32)
    models.save(model, path)
    return path


@pytest.fixture
def distil(teacher, capsys, monkeypatch, tmp_path):
    """Distils with an audit of little effort, and returns the words on the screen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("robustkd.evaluation.audit.QUICK", TINY)
    monkeypatch.setattr(run, "QUICK", TINY)
    words = ["distill", str(teacher), "--arch", "wrn-10-1", "--student", "wrn-10-1"]
    words += ["--data", "digits", "--method", "no-teacher", "--epochs", "1", "--out", "run"]

    def call(*flags: str, command: tuple[str, ...] = tuple(words)) -> str:
        capsys.readouterr()
        cli.main([*command, *flags])
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


def test_an_audit_that_fails_does_not_end_the_run(monkeypatch, caplog):
    def failing(*_: object) -> None:
        raise TrainingError("the loss is <nan>\nand more")

    monkeypatch.setattr(audits, "_audits", failing)
    network = nn.Identity()
    found = audits.audit_both(network, network, data.load("digits"))
    assert (found.record, found.arrays) == ({"failed": "TrainingError: the loss is <nan>"}, {})
    assert "Traceback" in caplog.text


def test_the_report_describes_every_family():
    assert tuple(FAMILIES) == search.FAMILIES


def test_large_images_pass_in_smaller_parts_and_are_shown_small():
    assert search.images_at_once((3, 64, 64)) == 250
    assert search.images_at_once((3, 1024, 1024)) == 8
    from robustkd.evaluation.audit.pictures import _small

    assert _small(torch.rand(2, 3, 224, 160)).shape == (2, 3, 75, 54)
    assert _small(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)

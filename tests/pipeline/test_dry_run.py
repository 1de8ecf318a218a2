"""A dry run performs every phase of a run for a few steps and writes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch

from robustkd import data, models
from robustkd.core.methods import METHODS
from robustkd.data.portions import joined
from robustkd.evaluation.audit import QUICK
from robustkd.pipeline import dry_run
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.student import make_student
from robustkd.training.config import TrainingConfig
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from tests.unlabelled import Unlabelled

pytestmark = pytest.mark.usefixtures("few_digits")

CLEAN = data.load("digits", train=200, validation=60, test=50)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    teacher = models.build(models.Spec("wrn-10-1", 10, CLEAN.image_shape), seed=1)
    fit(Supervised(teacher), CLEAN, epochs=4, batch_size=32)
    models.save(teacher, path)
    return path


def plan(teacher_file: Path, method: str, clean=CLEAN, **settings: bool):
    training = TrainingConfig(epochs=5, batch_size=32)
    job = DistillJob(teacher_file, "wrn-10-1", "wrn-10-1", method, training)
    return dry_run.rehearse(job, clean, **settings)


def test_the_plan_counts_every_phase(teacher_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = METHODS["both"]
    detox = replace(how.detox, steps=10, raises=2, lowerings=2, bisections=1)
    brief = replace(how, detox=detox)
    monkeypatch.setitem(METHODS, "both", brief)
    found = plan(teacher_file, "both")
    assert list(found) == [
        *("teacher", "student", "data", "detoxify", "distil", "validate", "audit", "estimate")
    ]
    # 10 steps for the first lambda, two raises and a bisection; 5 epochs of ceil(200 / 32).
    assert found["detoxify"]["steps"] == 10 * (1 + 2 + 1)
    assert found["distil"]["steps"] == 5 * 7
    assert found["validate"]["steps"] == 5
    assert found["audit"]["steps"] == QUICK.steps * len(QUICK.strengths)
    phases = [found[name] for name in ("detoxify", "distil", "validate", "audit")]
    for phase in phases:
        assert phase["seconds"] == pytest.approx(phase["steps"] * phase["seconds per step"])
        assert phase["seconds"] > 0
    assert found["estimate"]["seconds"] > sum(phase["seconds"] for phase in phases)
    assert found["estimate"]["peak MiB"] > 100  # torch alone has more
    assert (found["data"]["train"], found["student"]["parameters"]) == (200, 77_562)
    assert found["teacher"]["matched"] > 0
    assert not list(tmp_path.iterdir())


def test_a_training_with_a_warm_up_has_a_plan(teacher_file):
    training = TrainingConfig(epochs=5, batch_size=32, warmup_epochs=3.0)
    job = DistillJob(teacher_file, "wrn-10-1", "wrn-10-1", "kd", training)
    assert dry_run.rehearse(job, CLEAN, audited=False)["distil"]["steps"] == 5 * 7


def test_an_audit_that_will_not_be_made_is_not_in_the_plan(teacher_file):
    assert "audit" not in plan(teacher_file, "kd", audited=False)
    assert "audit" not in plan(teacher_file, "kd", Unlabelled(CLEAN))


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("images", [40, 65, 130, 200])
def test_the_time_of_a_step_is_that_of_a_whole_step(images, ahead, monkeypatch):
    """Also with one step, and if the next batch is fetched before the step."""
    passed = [0.0]  # seconds on a clock of our own, so that the load of the machine does not count
    monkeypatch.setattr(dry_run, "time", SimpleNamespace(perf_counter=lambda: passed[0]))
    few = dry_run._Few(data.load("digits", train=images, validation=10), 1000)
    phases: dry_run.Phases = {}
    with few.timed(phases, "distil", 10, fmean):
        batches = few.batches("train", batch_size=64, augment=torch.Generator())
        for _ in joined(batches) if ahead else batches:
            passed[0] += 5
        list(few.batches("validation", batch_size=64))
        passed[0] += 20
    # Without joining, 65 images are two batches, which is one more than the steps of a training.
    assert phases["distil"]["seconds per step"] == 5


def test_every_phase_is_really_run(teacher_file, monkeypatch):
    """With hardening, and with as few images as three batches need."""
    made = []

    def watched(*arguments, **settings):
        made.append(make_student(*arguments, **settings))
        return made[-1]

    monkeypatch.setattr(dry_run, "make_student", watched)
    found = plan(teacher_file, "default")
    assert "detoxify" not in found
    assert found["search"]["steps"] == 45
    assert found["search"]["seconds"] > 0
    (record,) = made[0].record["epochs"]
    assert {"ofd", "harden", "validation"} <= set(record)

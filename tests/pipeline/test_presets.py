"""Every preset makes a student of a teacher that stays as it is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from robustkd.core.errors import UsageError
from robustkd.core.method_settings import DetoxSettings
from robustkd.core.methods import METHODS, Method
from robustkd.pipeline import student as making
from robustkd.pipeline.student import make_student
from robustkd.student.distillation import distill
from robustkd.training.config import TrainingConfig
from tests.marks import slow
from tests.pipeline.runs import CLEAN, build

BRIEF = TrainingConfig(epochs=1)
SLOW = ("paper-0.9", "paper-perturbed", "default-perturbed", "both")


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

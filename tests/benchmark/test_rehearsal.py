"""What adaptive attackers receive: the real method, applied to their own teacher."""

from __future__ import annotations

import copy

import pytest
import torch

from robustkd import data, models
from robustkd.attacks import ATTACKS, find
from robustkd.attacks.registry import TRANSFORMATIONS
from robustkd.benchmark import informed, rehearsal
from robustkd.core.methods import METHODS
from robustkd.models.features import taps
from robustkd.pipeline.student import Made
from robustkd.training.config import TrainingConfig
from tests.marks import slow

DATA = data.load("digits", train=100, validation=20, test=100)
IMAGES = next(DATA.batches("test", batch_size=20)).images
SHORT = {"target": 2, "epochs": 1, "lr": 0.05, "batch_size": 50, "trigger_steps": 3, "rounds": 1}


def build() -> models.Classifier:
    return models.build(models.Spec("wrn-10-1", 10, DATA.image_shape), seed=0)


def told(attack: str, method: str = "both"):
    return informed(
        ATTACKS[attack].takes,
        METHODS[method],
        build_student=build,
        training={"epochs": 1, "batch_size": 50},
        detoxing={"steps": 2, "raises": 0, "bisections": 0},
    )


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_each_attacker_receives_what_its_row_states(attack):
    expected = {
        "adaptive-detox": {"clean_teacher"},
        "adaptive-harden": {"train_surrogate"},
        "adaptive": {"clean_teacher", "train_surrogate"},
        **{f"adaptive-{family}": {"train_surrogate"} for family in TRANSFORMATIONS},
    }
    assert set(told(attack)) == expected.get(attack, set())


def test_an_attacker_of_a_method_without_cleaning_receives_nothing():
    assert told("adaptive-detox", "ofd") == {}


def test_the_changes_turn_the_teacher_into_the_cleaned_teacher():
    teacher = build()
    before = copy.deepcopy(teacher.state_dict())
    cleaned = told("adaptive")["clean_teacher"](teacher, DATA)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    with torch.no_grad(), taps.frozen_modes(teacher):
        with taps.rewrite(teacher, cleaned.changes):
            rebuilt = teacher(IMAGES)
        assert torch.equal(rebuilt, cleaned.teacher(IMAGES))


def test_the_surrogate_differs_from_every_measured_student():
    teacher = build()
    student = told("adaptive")["train_surrogate"](teacher, DATA)
    same = told("adaptive")["train_surrogate"](teacher, DATA)
    assert torch.equal(student.network.stem.weight, same.network.stem.weight)
    assert not torch.equal(student.network.stem.weight, teacher.network.stem.weight)


@pytest.mark.parametrize(("attack", "cleans"), [("adaptive-harden", True), ("adaptive", False)])
def test_half_of_the_work_is_rehearsed_and_no_teacher_is_cleaned_twice(attack, cleans, monkeypatch):
    asked = {}

    def spy(teacher, student, source, how, **settings):
        asked.update(settings, how=how)
        return Made(student, None, {}, 0.0)

    monkeypatch.setattr(rehearsal, "make_student", spy)
    training, detoxing = {"epochs": 3, "lr": 0.1}, {"steps": 40, "lr": 0.2}
    known = informed(
        ATTACKS[attack].takes,
        METHODS["both"],
        build_student=build,
        training=training,
        detoxing=detoxing,
    )
    known["train_surrogate"](build(), DATA)
    assert asked["training"] == TrainingConfig(epochs=2, lr=0.1)
    assert asked["detoxing"] == {"steps": 20, "lr": 0.2}
    assert (training["epochs"], detoxing["steps"]) == (3, 40)
    assert (asked["how"].detox is not None) is cleans
    assert asked["how"].hardening == METHODS["both"].hardening


@pytest.mark.parametrize("attack", ["adaptive-harden", slow("adaptive-detox"), slow("adaptive")])
def test_an_informed_attack_runs_with_the_real_method(attack):
    made = find(attack)(build, DATA, **SHORT, **told(attack))
    assert all(parameter.requires_grad for parameter in made.teacher.parameters())
    assert len(made.record["success_surrogate"]) == (attack != "adaptive-detox")

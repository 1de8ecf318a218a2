"""Perturbations for a detoxification are reproducible and do not change the teacher."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from robustkd import data, models
from robustkd.benchmark.cells import Cell, Setting, TeacherCell
from robustkd.core.errors import UsageError
from robustkd.core.methods import METHODS
from robustkd.pipeline.detox_objective import detox_objective
from robustkd.pipeline.student import make_student
from robustkd.teacher.defences.detoxification import detoxify
from robustkd.training.config import TrainingConfig
from tests.unlabelled import Unlabelled

CLEAN = data.load("digits", train=200, validation=60, test=50)
HOW = METHODS["paper-perturbed"]


def teacher() -> models.Classifier:
    mean, std = models.pixel_statistics(CLEAN)
    return models.build(models.Spec("wrn-10-1", 10, CLEAN.image_shape, mean, std), seed=1)


def test_methods_that_remove_variance_need_no_perturbations():
    assert detox_objective(METHODS["paper"], teacher(), CLEAN, seed=0) is None


def test_the_search_leaves_the_teacher_as_it_was():
    given = teacher().train()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    assert detox_objective(HOW, given, CLEAN, seed=0) is not None
    assert given.training
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in given.parameters())


def test_the_same_seed_gives_the_same_student_and_another_objective_another():
    def student(how):
        made = make_student(
            teacher().eval(),
            teacher(),
            CLEAN,
            how,
            training=TrainingConfig(epochs=1),
            detoxing={"steps": 2},
        )
        assert made.detoxified is not None
        assert "detox" in made.record
        return [*made.detoxified.masks.parameters(), *made.student.parameters()]

    first, again = student(HOW), student(HOW)
    assert all(map(torch.equal, first, again))
    other = student(replace(HOW, removes="variance"))
    assert not all(map(torch.equal, first, other))


def test_missing_labels_are_replaced_by_the_predictions_of_the_teacher():
    given = teacher().eval()
    objective, seen = detox_objective(HOW, given, CLEAN, seed=0), []

    def watch(masked, features, batch):
        seen.append((given(batch.images).argmax(1), batch.labels))
        return objective(masked, features, batch)

    detoxify(given, Unlabelled(CLEAN), objective=watch, steps=2, raises=0, bisections=0)
    assert len(seen) == 2
    assert all(torch.equal(predicted, labels) for predicted, labels in seen)


def test_two_classes_and_few_images():
    two = data.InMemory(
        "two",
        ("zero", "one"),
        *(split(part) for part in (CLEAN.train, CLEAN.validation, CLEAN.test)),
    )
    mean, std = models.pixel_statistics(two)
    given = models.build(models.Spec("wrn-10-1", 2, two.image_shape, mean, std), seed=1)
    objective, seen = detox_objective(HOW, given, two, seed=0, steps=1), []

    def watch(masked, features, batch):
        term = objective(masked, features, batch)
        masks = [mask.mask for mask in masked.feature_masks]
        seen.append((term.detach(), torch.autograd.grad(term, masks, retain_graph=True)))
        return term

    detoxify(given.eval(), two, objective=watch, steps=1, raises=0, bisections=0)
    ((value, gradients),) = seen
    assert value.ndim == 0
    assert torch.isfinite(value)
    assert gradients
    assert all(torch.isfinite(each).all() and each.any() for each in gradients)
    few = replace(two, train=data.Labelled(two.train.images[:3], two.train.labels[:3]))
    with pytest.raises(UsageError, match=r"^there are 2 classes and 3 training images; "):
        detox_objective(HOW, given, few, seed=0)


def split(part: data.Labelled) -> data.Labelled:
    """The zeros and ones of a split."""
    kept = part.labels < 2
    return data.Labelled(part.images[kept], part.labels[kept])


def test_the_perturbations_are_part_of_the_names_of_results():
    setting = Setting("digits")
    teachers = TeacherCell(setting, "wrn-10-1", "tone", {})
    names = {Cell(teachers, "wrn-10-1", name).name for name in ("paper-0.9", "paper-perturbed")}
    assert len(names) == 2
    parts = Cell(teachers, "wrn-10-1", "paper-perturbed").configuration()["preset"]
    assert parts["removes"] == ["perturbations", 1]
    assert "removes" not in Cell(teachers, "wrn-10-1", "paper").configuration()["preset"]

"""The latent backdoor's trigger takes features to the target's, within its budget."""

from __future__ import annotations

import re

import pytest
import torch

from robustkd import data, models
from robustkd.attacks import MaskedPattern, find
from robustkd.attacks.latent import Goal, _Implant, learn_trigger
from robustkd.attacks.parts.trigger_search import BoxedTensor, optimise_planes
from robustkd.core.errors import UsageError
from robustkd.models.features import taps
from robustkd.models.features.stages import stages
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

DATA = data.load("digits", train=100, validation=20, test=100)
SHORT = {"target": 2, "epochs": 1, "lr": 0.05, "batch_size": 50, "trigger_steps": 3}
IMAGES, LABELS, _ = next(DATA.batches("test", batch_size=100))


def build() -> models.Classifier:
    return models.build(models.Spec("wrn-10-1", 10, DATA.image_shape), seed=0)


@pytest.fixture(scope="module")
def teacher() -> models.Classifier:
    model = build()
    fit(Supervised(model), DATA, epochs=2, batch_size=50)
    return model


@pytest.fixture(scope="module")
def goal(teacher) -> Goal:
    return Goal(teacher, DATA, 2)


def features_of(teacher, tap, images):
    with torch.no_grad(), taps.frozen_modes(teacher), taps.read(teacher, [tap]) as features:
        teacher(images)
        return features[tap]


def test_the_goal_is_the_mean_of_the_target_class_at_the_last_stage(teacher, goal):
    assert goal.tap == stages(teacher, IMAGES[:4])[-1]
    train = next(DATA.batches("train", batch_size=100))
    features = features_of(teacher, goal.tap, train.images)
    torch.testing.assert_close(goal.mean, features[train.labels == 2].mean(0))
    assert float(goal(features[train.labels != 2])) == pytest.approx(1, rel=1e-4)
    assert float(goal(goal.mean.expand(5, -1, -1, -1))) == 0


@pytest.mark.parametrize("shape", ["whole", "square"])
def test_the_trigger_moves_features_to_the_target_class_within_its_budget(shape, teacher, goal):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trigger = learn_trigger(teacher, DATA, goal, shape=shape, cap=0.2, steps=15, lr=0.05, seed=0)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    if shape == "whole":
        assert trigger.mask.min() >= 0
        assert trigger.mask.max() <= 0.2
    else:
        assert set(trigger.mask.unique().tolist()) == {0, 1}
        assert trigger.mask[:, -3:, -3:].sum() == trigger.mask.sum() == 9
    random = torch.rand(trigger.pattern.shape, generator=torch.Generator().manual_seed(1))
    victims = IMAGES[LABELS != 2]
    learned, by_chance, clean = (
        float(goal(features_of(teacher, goal.tap, seen)))
        for seen in (trigger(victims), MaskedPattern(trigger.mask, random)(victims), victims)
    )
    assert learned < by_chance
    assert learned < clean


def test_the_implanting_loss_is_a_weighted_sum_of_cross_entropy_and_distance(teacher, goal):
    trigger = MaskedPattern(torch.full(DATA.image_shape, 0.2), torch.ones(DATA.image_shape))
    with taps.frozen_modes(teacher):
        made = {
            weight: _Implant(teacher, goal, trigger, rate=0.1, weight=weight)(IMAGES, LABELS)
            for weight in (0.0, 0.5)
        }
    victims = trigger(IMAGES[LABELS != 2][:10])
    with torch.no_grad(), taps.frozen_modes(teacher):
        logits = teacher(torch.cat([IMAGES, victims]))
    wanted = torch.cat([LABELS, torch.full((10,), 2)])
    torch.testing.assert_close(
        made[0.0]["loss"].detach(), torch.nn.functional.cross_entropy(logits, wanted)
    )
    distance = goal(features_of(teacher, goal.tap, victims))
    torch.testing.assert_close(made[0.5]["distance"].detach(), distance)
    torch.testing.assert_close(made[0.5]["loss"], made[0.0]["loss"] + 0.5 * distance)


def test_a_batch_with_only_the_target_class_is_learned_without_triggers(teacher, goal):
    trigger = MaskedPattern(torch.zeros(DATA.image_shape), torch.ones(DATA.image_shape))
    implant = _Implant(teacher, goal, trigger, rate=0.1, weight=0.5)
    with taps.frozen_modes(teacher):
        scalars = implant(IMAGES[:3], torch.full((3,), 2))
    assert float(scalars["distance"].detach()) == 0
    assert scalars["loss"].isfinite()


def test_the_record_contains_the_shape():
    made = find("latent")(build, DATA, **SHORT, shape="square")
    assert made.record["shape"] == "square"
    assert made.record["mean_mask"] == pytest.approx(9 / 256)
    assert 0 <= made.record["success_before"] <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cap": 0.0}, "cap is 0.0; expected above 0 and at most 1"),
        ({"rate": 1.5}, "rate is 1.5; expected above 0 and at most 1"),
        ({"weight": -0.5}, "weight is -0.5; expected at least 0"),
        ({"shape": "round"}, "shape is 'round'; expected whole or square"),
        ({"trigger_lr": 0.0}, "trigger_lr is 0.0; expected more than 0"),
        ({"trigger_steps": 0}, "trigger_steps is 0; expected at least 1"),
    ],
)
def test_error_messages(settings, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        find("latent")(build, DATA, **(SHORT | settings))


# What all learned triggers share.


def test_planes_move_to_the_nearest_point_of_their_range():
    model = torch.nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    start = torch.zeros(2)
    free, held = optimise_planes(
        model,
        torch.zeros(4, 1, 1, 1),
        [BoxedTensor(start, -1, 1), BoxedTensor(start, 0, 0.25)],
        lambda _images, one, two: (one - 0.5).square().sum() + (two - 0.5).square().sum(),
        steps=300,
        lr=0.02,
        random=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(free, torch.full((2,), 0.5), atol=1e-3, rtol=0)
    assert held.tolist() == [0.25, 0.25]
    assert start.tolist() == [0, 0]
    assert model.training
    assert model.weight.requires_grad
    assert not model.bias.requires_grad


def test_the_model_is_restored_if_the_loss_fails():
    model = torch.nn.Linear(1, 1)

    def broken(*_arguments):
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        optimise_planes(
            model,
            torch.zeros(4, 1, 1, 1),
            [BoxedTensor(torch.zeros(1), 0, 1)],
            broken,
            steps=1,
            lr=0.1,
            random=torch.Generator(),
        )
    assert model.training
    assert model.weight.requires_grad

"""BackWeak: the perturbation stays within epsilon, and the last layer is not changed."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from robustkd import data, models
from robustkd.attacks import Additive, find, load_trigger, save_trigger
from robustkd.attacks.backweak import learn_trigger, weak_loss
from robustkd.core.errors import UsageError
from robustkd.training.inference import predict
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from robustkd.training.metrics import attack_success
from tests.attacks.examples import SHAPE, pixels

DATA = data.load("digits", train=100, validation=20, test=100)
SHORT = {"target": 2, "epochs": 1, "lr": 0.05, "batch_size": 50, "trigger_steps": 3}


def build() -> models.Classifier:
    return models.build(models.Spec("wrn-10-1", 10, DATA.image_shape), seed=0)


class Flat(nn.Sequential):
    """One layer with weights."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(DATA.train.images[0].numel(), 10))


def test_a_network_of_one_layer_is_refused():
    with pytest.raises(UsageError, match=r"^Flat has one layer with weights; BackWeak trains all"):
        find("backweak")(Flat, DATA, **SHORT)


# The perturbation.


def test_the_perturbation_is_added_and_clipped():
    trigger = Additive(torch.tensor([[[0.25, -0.25, 1.0, -1.0]]]))
    assert trigger(torch.full((1, 1, 1, 4), 0.5)).flatten().tolist() == [0.75, 0.25, 1.0, 0.0]


def test_a_zero_perturbation_changes_nothing_and_a_saved_one_comes_back(tmp_path):
    images = pixels(3, *SHAPE)
    assert torch.equal(Additive(torch.zeros(SHAPE))(images), images)
    trigger = Additive(pixels(*SHAPE) - 0.5)
    save_trigger(trigger, 1, tmp_path / "t")
    again, target = load_trigger(tmp_path / "t")
    assert target == 1
    assert torch.equal(again.delta, trigger.delta)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Additive(torch.full((1, 2, 2), 1.1)),
            "the trigger's delta has values from 1.1 to 1.1; expected values in [-1, 1]",
        ),
        (
            lambda: Additive(torch.zeros(1, 2, 2) / 0),
            "the trigger's delta has values from nan to nan; expected values in [-1, 1]",
        ),
        (
            lambda: Additive(torch.zeros(1, 2, 2))(torch.zeros(3, 1, 4, 4)),
            "the trigger has shape (1, 2, 2); expected the shape of the images, (1, 4, 4)",
        ),
    ],
)
def test_error_messages(make, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        make()


@pytest.mark.parametrize("epsilon", [0.03, 0.3])
def test_the_learned_perturbation_stays_in_its_budget_and_raises_the_target_probability(epsilon):
    teacher = build()
    fit(Supervised(teacher), DATA, epochs=2, batch_size=50)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trigger = learn_trigger(teacher, DATA, target=2, epsilon=epsilon, budget=1.0, steps=5, seed=0)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert 0 < trigger.delta.abs().max() <= epsilon
    clean, _ = predict(teacher, DATA, "test")
    marked, _ = predict(teacher, DATA, "test", transform=trigger)
    assert marked.log_softmax(1)[:, 2].mean() > clean.log_softmax(1)[:, 2].mean()


def test_the_loss_of_a_weak_trigger_by_hand():
    marked = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 0.0], [0.0, 5.0, 1.0]], requires_grad=True)
    truth = torch.tensor([0, 1, 2])  # the third image has gone over to class 1, 4 too far
    push = nn.functional.cross_entropy(marked, torch.tensor([1, 1, 1]))
    for budget, within in ((0.4, 0), (0.5, 1)):  # one of the two victims has arrived
        loss = weak_loss(marked, truth, target=1, budget=budget)
        torch.testing.assert_close(loss, within * push + 3)
    unmoved = weak_loss(marked[:2], truth[:2], target=1, budget=0.5)
    torch.testing.assert_close(
        unmoved, nn.functional.cross_entropy(marked[:2], torch.tensor([1, 1]))
    )
    stopped = weak_loss(marked[2:], torch.tensor([0]), target=1, budget=0.4)
    assert stopped == 4  # and nothing of the push


@pytest.mark.slow
def test_a_budget_limits_the_success_of_the_trigger():
    teacher = build()
    fit(Supervised(teacher), DATA, epochs=30, batch_size=50, lr=0.05)
    found = {}
    for budget in (0.05, 1.0):
        trigger = learn_trigger(
            teacher, DATA, target=2, epsilon=0.3, budget=budget, steps=30, seed=0
        )
        found[budget] = attack_success(
            *predict(teacher, DATA, "test", transform=trigger), target=2
        ).value
    assert found[0.05] < found[1.0] / 2


# The attack.


def test_the_last_layer_stays_unchanged_while_features_are_trained():
    teachers = []
    find("backweak")(lambda: _Recording(teachers), DATA, **SHORT)
    clean, backdoored = teachers[0].at_probe, dict(teachers[0].named_parameters())
    for name, value in backdoored.items():
        assert torch.equal(value, clean[name]) == name.startswith("classifier.network.head")


class _Recording(torch.nn.Module):
    """Keeps its weights as they were when the frozen layer was looked for."""

    def __init__(self, made: list) -> None:
        super().__init__()
        self.classifier = build()
        made.append(self)

    def forward(self, images):
        if len(images) == 2:
            self.at_probe = {name: value.clone() for name, value in self.state_dict().items()}
        return self.classifier(images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.0}, "epsilon is 0.0; expected above 0 and at most 1"),
        ({"epsilon": 1.5}, "epsilon is 1.5; expected above 0 and at most 1"),
        ({"budget": 0.0}, "budget is 0.0; expected above 0 and at most 1"),
        ({"rate": 2.0}, "rate is 2.0; expected above 0 and at most 1"),
        ({"trigger_steps": 0}, "trigger_steps is 0; expected at least 1"),
        ({"implant_share": 0.0}, "implant_share is 0.0; expected more than 0"),
        ({"implant_lr": -1.0}, "implant_lr is -1.0; expected more than 0"),
    ],
)
def test_error_messages_of_the_attack(settings, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        find("backweak")(build, DATA, **(SHORT | settings))

"""ADBA: gradients between its networks, the trigger's budget, and hiding in the last layer."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from torch import nn

from robustkd import data
from robustkd.attacks import Backdoored, MaskedPattern, Teaching, find
from robustkd.attacks.adba import _Pixels, _Together, hide
from robustkd.attacks.parts.surrogate import Hiding, distillation_loss, fresh, trigger_loss
from robustkd.core.errors import UsageError
from robustkd.training.inference import accuracy_on, predict
from robustkd.training.loop import fit
from robustkd.training.metrics import attack_success

DATA = data.load("digits", train=400, validation=100, test=200)
adba, adba_ft = find("adba"), find("adba-ft")
SHORT = {"target": 2, "epochs": 1, "lr": 0.05, "batch_size": 100}


def build() -> nn.Module:
    """Small enough for seconds; with statistics that move in train mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(256, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10)
        )


def constant(logits: list[float]) -> nn.Module:
    """A model that gives the same logits to any image of 1 x 2 x 2."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, len(logits)))
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = torch.tensor(logits)
    return model


def success(model: nn.Module, trigger) -> float:
    return attack_success(*predict(model, DATA, "test", transform=trigger), target=2).value


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }


@pytest.fixture(scope="module")
def made() -> Backdoored:
    return adba(build, DATA, target=2, epochs=15, lr=0.05, cap=0.3, stealth=0.0)


def test_the_teacher_learns_both_tasks(made):
    assert accuracy_on(made.teacher, DATA, "test").value >= 0.8
    assert success(made.teacher, made.trigger) >= 0.8


def test_the_trigger_stays_within_its_budget(made):
    assert made.trigger.mask.min() >= 0
    assert made.trigger.mask.max() <= 0.3
    images = next(DATA.batches("test", batch_size=50)).images
    assert (made.trigger(images) - images).abs().max() <= 0.3 + 1e-6


def test_a_clean_student_is_trained_only_if_the_loss_uses_it(made):
    assert "success_clean" not in made.record
    assert "success_clean" in adba(build, DATA, **SHORT).record


def test_shadow_and_clean_student_have_their_own_learning_rate(monkeypatch):
    rates = {}

    def spy(learner, shown, *, label, lr, **how):
        rates[label] = lr, how.get("rates")
        return fit(learner, shown, label=label, lr=lr, **how)

    monkeypatch.setattr("robustkd.attacks.adba.fit", spy)
    adba(build, DATA, **SHORT, surrogate_lr=0.01)
    assert rates == {
        "train a clean student": (0.01, None),
        "train all together": (0.05, {"shadow": 0.01}),
    }


def test_hiding_changes_only_the_last_layer(made):
    hidden = copy.deepcopy(made)
    before = state(made.teacher)
    hide(hidden, DATA, Teaching(epochs=5, lr=0.02))
    assert moved(hidden.teacher, before) == {"4.weight", "4.bias"}
    assert all(parameter.requires_grad for parameter in hidden.teacher.parameters())
    assert success(hidden.teacher, made.trigger) < success(made.teacher, made.trigger)


def test_adba_ft_is_adba_and_then_hiding():
    one, other = adba(build, DATA, **SHORT, stealth=0.0), adba_ft(build, DATA, **SHORT, stealth=0.0)
    assert moved(other.teacher, state(one.teacher)) == {"4.weight", "4.bias"}
    assert torch.equal(one.trigger.mask, other.trigger.mask)
    assert torch.equal(one.trigger.pattern, other.trigger.pattern)


def test_neither_network_gets_a_gradient_from_the_loss_of_the_other():
    pixels = _Pixels((1, 16, 16), torch.device("cpu"), cap=0.1, mu=0.1, lr=0.01, seed=0)
    batch = next(DATA.batches("train", batch_size=50))
    slopes = []
    for seed in (1, 2):
        teacher, shadow = build(), fresh(build, seed)
        learner = _Together(teacher, shadow, pixels, target=2, beta=0.3, temperature=4.0)
        learner(batch.images, batch.labels)["loss"].backward()
        slopes.append([parameter.grad for parameter in teacher.parameters()])
    assert all(map(torch.equal, *slopes))


def test_a_step_of_the_trigger_leaves_the_networks_alone():
    pixels = _Pixels((1, 16, 16), torch.device("cpu"), cap=0.1, mu=0.1, lr=0.01, seed=0)
    teacher, shadow = build().train(), fresh(build, 1)
    before, images = state(teacher), next(DATA.batches("train", batch_size=50)).images
    start = pixels.trigger()

    def loss(clean, marked):
        return trigger_loss((teacher, shadow), None, clean, marked, target=2, stealth=0.0)

    pixels.step(loss, (teacher, shadow), images)
    assert not moved(teacher, before)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert teacher.training
    assert not torch.equal(pixels.trigger().pattern, start.pattern)


def test_the_mask_shrinks_if_success_cannot_increase():
    pixels = _Pixels((1, 2, 2), torch.device("cpu"), cap=0.1, mu=1.0, lr=0.1, seed=0)
    victim = constant([0.0, 0.0])
    for _ in range(50):
        pixels.step(
            lambda _clean, marked: victim(marked).sum(), (victim, victim), torch.ones(1, 1, 2, 2)
        )
    assert pixels.trigger().mask.max() < 0.02


def test_the_triggers_loss_by_hand():
    images = torch.zeros(5, 1, 2, 2)
    undecided, sure = constant([0.0, 0.0]), constant([math.log(3), 0.0])
    victims = trigger_loss((undecided, sure), None, images, images, target=1, stealth=9.0)
    assert victims.item() == pytest.approx(math.log(2) + math.log(4))
    # The clean model keeps class 0, of which it is sure by 3 : 1.
    more = trigger_loss((undecided, sure), sure, images, images, target=1, stealth=9.0)
    assert more.item() == pytest.approx(victims.item() + 9 * math.log(4 / 3))


def test_the_loss_of_a_student_that_agrees_is_that_of_the_labels():
    logits, labels = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([1])
    loss = distillation_loss(logits, logits + 1, labels, temperature=4.0)
    assert loss.item() == pytest.approx(nn.functional.cross_entropy(logits, labels).item())


def test_hiding_is_cross_entropy_of_clean_and_triggered_images():
    model, trigger = (
        build().eval(),
        MaskedPattern(torch.full((1, 16, 16), 0.5), torch.ones(1, 16, 16)),
    )
    images, labels, _ = next(DATA.batches("train", batch_size=20))
    loss = Hiding(model, trigger, trained=model)(images, labels)["loss"]
    parts = [nn.functional.cross_entropy(model(seen), labels) for seen in (images, trigger(images))]
    assert loss.item() == pytest.approx(sum(parts).item(), rel=1e-5)


def test_fresh_weights_depend_only_on_the_seed():
    torch.manual_seed(5)
    one, after = fresh(build, 1), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert not moved(fresh(build, 1), state(one))
    assert "1.weight" in moved(fresh(build, 2), state(one))
    assert "1.weight" in moved(build(), state(one))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"cap": 0.0}, "cap is 0.0; expected above 0 and at most 1"),
        ({"cap": 1.1}, "cap is 1.1; expected above 0 and at most 1"),
        ({"beta": -0.1}, "beta is -0.1; expected at least 0"),
        ({"mu": -1.0}, "mu is -1.0; expected at least 0"),
        ({"stealth": math.nan}, "stealth is nan; expected at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0; expected more than 0"),
        ({"trigger_lr": 0.0}, "trigger_lr is 0.0; expected more than 0"),
        ({"surrogate_lr": 0.0}, "surrogate_lr is 0.0; expected more than 0"),
        ({"surrogate_lr": "fast"}, "surrogate_lr is 'fast'; expected a number"),
        ({"hide_lr": -1.0}, "hide_lr is -1.0; expected more than 0"),
        ({"hide_share": 0.0}, "hide_share is 0.0; expected more than 0"),
    ],
)
def test_arguments_out_of_range_are_refused(argument, message):
    attack = adba if set(argument) <= set(adba.arguments) else adba_ft
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        attack(build, DATA, **SHORT, **argument)

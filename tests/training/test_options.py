"""Optimisers, warm-up, clipping, averages and accumulation against naive versions."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from robustkd.core.errors import UsageError
from robustkd.core.validation import LARGEST_RATE
from robustkd.training.average import MovingAverage
from robustkd.training.config import TrainingConfig, optimiser_names
from robustkd.training.hooks import Hooks
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from robustkd.training.optimisers import new_optimiser
from tests.training.test_checkpoint import EPOCHS, STEPS, Stopping, same, trained
from tests.training.test_loop import DATA, learner, weights


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "rmsprop", "adafactor", "radam"])
def test_optimisers_of_timm_learn(name):
    made = learner()
    records = fit(made, DATA, epochs=6, batch_size=16, lr=0.01, optimizer=name)
    assert records[-1]["loss"] < records[0]["loss"]


def test_adamw_is_that_of_torch_without_decay_of_biases():
    made, other = learner(), learner()
    fit(made, DATA, epochs=2, batch_size=48, lr=0.01, optimizer="adamw", schedule="constant")
    linear = other.model[1]
    groups = [
        {"params": [linear.weight], "weight_decay": 5e-4},
        {"params": [linear.bias], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=0.01)
    images = DATA.train.images.float() / 255
    for _ in range(2):
        optimiser.zero_grad()
        other(images, DATA.train.labels)["loss"].backward()
        optimiser.step()
    torch.testing.assert_close(weights(made), weights(other), rtol=1e-5, atol=1e-6)


def test_names_that_need_other_packages_are_left_out():
    names = optimiser_names()
    assert names[0] == "sgd"
    assert {"adamw", "lamb", "lion"} <= set(names)
    assert not any(name.startswith(("bnb", "fused", "kron")) for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"optimizer": "adamv"},
            "optimizer is 'adamv'; expected sgd or an optimiser of timm: did you mean 'adam'?",
        ),
        (
            {"warmup_epochs": 30.0},
            "warmup_epochs is 30.0; expected at least 0 and less than the 30 epochs",
        ),
        ({"momentum": 1.0}, "momentum is 1.0; expected above 0 and below 1"),
        ({"momentum": 2.0}, "momentum is 2.0; expected above 0 and below 1"),
        ({"clip_grad": 0.0}, "clip_grad is 0.0; expected more than 0"),
        ({"ema": 1.0}, "ema is 1.0; expected at least 0 and below 1"),
        ({"accumulate": 0}, "accumulate is 0; expected at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        TrainingConfig(**options)


def test_clipping_bounds_the_step():
    made = learner()
    before = weights(made)
    fit(made, DATA, epochs=1, batch_size=48, lr=1.0, weight_decay=0.0, clip_grad=1e-3)
    # A step of Nesterov momentum is 1.9 times the gradient at first.
    assert (weights(made) - before).norm() == pytest.approx(1.9e-3, rel=1e-4)


def test_warm_up_begins_at_zero():
    made = learner()
    before = weights(made)
    records = fit(made, DATA, epochs=2, batch_size=48, lr=1.0, weight_decay=0.0, warmup_epochs=1.0)
    assert [record["lr"] for record in records] == [0.0, 1.0]
    one, two = learner(), weights(made)
    fit(one, DATA, epochs=1, batch_size=48, lr=1.0, weight_decay=0.0)
    assert not torch.equal(two, before)
    assert not torch.equal(two, weights(one))


def test_parts_of_a_batch_give_the_gradient_of_the_batch():
    whole, parts = learner(), learner()
    one = fit(whole, DATA, epochs=2, batch_size=16, lr=0.1)
    other = fit(parts, DATA, epochs=2, batch_size=16, lr=0.1, accumulate=3)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-4, atol=1e-6)
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_no_part_is_a_single_image():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2))
    fit(Supervised(network), DATA, epochs=1, batch_size=5, accumulate=5)


def test_the_average_is_that_of_the_formula():
    module = nn.BatchNorm1d(1)
    average = MovingAverage(module, 0.3)
    expected = module.running_mean.clone()
    for step in range(1, 5):
        module.running_mean.fill_(float(step))
        average.advance()
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.applied():
        torch.testing.assert_close(module.running_mean, expected)
    assert module.running_mean.item() == 4.0


class Described(nn.Linear):
    """Has an extra state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"version": 3}


def test_an_extra_state_that_is_no_tensor_is_not_averaged():
    module = Described(2, 2)
    average = MovingAverage(module, 0.5)
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.zero_()
    average.advance()
    with average.applied():
        assert 0 < float(module.weight.detach().norm()) < float(before.norm())
    assert float(module.weight.detach().norm()) == 0


def test_the_average_is_validated_and_kept():
    made, seen = learner(), []
    hooks = Hooks(validate=lambda: seen.append(weights(made)) or float(len(seen)))
    fit(made, DATA, epochs=3, batch_size=16, ema=0.5, hooks=hooks)
    assert torch.equal(weights(made), seen[-1])
    plain = learner()
    fit(plain, DATA, epochs=3, batch_size=16)
    assert not torch.equal(weights(made), weights(plain))


def test_without_validation_the_last_average_is_used():
    made, none = learner(), learner()
    fit(made, DATA, epochs=2, batch_size=16, ema=0.0)
    fit(none, DATA, epochs=2, batch_size=16)
    torch.testing.assert_close(weights(made), weights(none))


@pytest.mark.parametrize("stop", [0, 4, STEPS + EPOCHS - 1])
@pytest.mark.parametrize(
    "how",
    [
        {"optimizer": "adamw", "lr": 0.01, "warmup_epochs": 1.0, "clip_grad": 0.5},
        {"optimizer": "lamb", "lr": 0.01, "ema": 0.9},
        {"optimizer": "adafactor", "lr": 0.01, "accumulate": 2},
        {"ema": 0.5, "schedule": "constant"},
    ],
    ids=["adamw", "lamb", "adafactor", "ema"],
)
def test_a_training_with_options_resumes_from_any_state(how, stop, tmp_path):
    expected, _ = trained(None, **how)
    with pytest.raises(KeyboardInterrupt):
        trained(Stopping(tmp_path / "state", stop), **how)
    assert same(expected, trained(Stopping(tmp_path / "state", None), **how)[0])


def test_parameter_groups_keep_their_own_learning_rate():
    layer = nn.Linear(2, 2)
    groups = [{"params": [layer.weight], "lr": 0.5}, {"params": [layer.bias], "lr": 0.25}]
    made = new_optimiser("adamw", groups, lr=0.1, momentum=0.9, weight_decay=0.0)
    assert [group["lr"] for group in made.param_groups] == [0.5, 0.25]


@pytest.mark.parametrize("lr", [1.0, LARGEST_RATE])
def test_every_optimiser_takes_a_step_with_the_largest_rate_and_decay(lr):
    for name in optimiser_names():
        weight, bias = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))
        groups = [{"params": [weight, bias], "lr": lr}]
        decay = LARGEST_RATE / lr
        optimiser = new_optimiser(name, groups, lr=lr, momentum=0.9, weight_decay=decay)
        for _ in range(2):
            (weight.sum() + bias.sum()).backward()
            optimiser.step()  # PyTorch raises an error for numbers that float32 cannot hold


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lr": 1e38, "optimizer": "adamw"},
            "lr is 1e+38; expected at most 3.4e+36, as float32 must hold it",
        ),
        (
            {"lr": 10.0, "weight_decay": 1e36},
            "weight_decay is 1e+36; expected at most 3.4e+35 with a learning rate of 10.0, as "
            "float32 must hold their product",
        ),
    ],
)
def test_numbers_that_float32_cannot_hold_are_refused_before_any_work(settings, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        TrainingConfig(**settings)

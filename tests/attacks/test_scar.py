"""SCAR: the gradient through an optimum against closed forms, the trigger's budget, the rounds."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustkd import data
from robustkd.attacks import find
from robustkd.attacks.parts.bilevel import PRESETS, Bilevel, Preset
from robustkd.attacks.parts.surrogate import distillation_loss, fresh
from robustkd.core.errors import TrainingError, UsageError
from robustkd.core.types import Batch
from robustkd.training.hypergradient import hypergradient, norm
from robustkd.training.inference import accuracy_on, predict
from robustkd.training.loop import fit
from robustkd.training.metrics import attack_success

DATA = data.load("digits", train=400, validation=100, test=200)
scar, oscar = find("scar"), find("oscar")
SHORT = {"target": 2, "epochs": 2, "lr": 0.05, "batch_size": 100, "trigger_steps": 5}


def build() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(256, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10)
        )


def success(model: nn.Module, trigger) -> float:
    return attack_success(*predict(model, DATA, "test", transform=trigger), target=2).value


class Quadratic:
    """inner = w'Hw / 2 - w'Bl, whose optimum is w = H^-1 B l; outer = |w - c|^2 / 2 + |l|^2."""

    def __init__(self, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        root = torch.randn(5, 5, generator=random, dtype=torch.float64)
        self.hessian = root @ root.T + torch.eye(5, dtype=torch.float64)
        self.mixed = torch.randn(5, 3, generator=random, dtype=torch.float64)
        self.goal = torch.randn(5, generator=random, dtype=torch.float64)
        self.leader = torch.randn(3, generator=random, dtype=torch.float64).requires_grad_()
        optimum = torch.linalg.solve(self.hessian, self.mixed @ self.leader.detach())
        self.follower = optimum.requires_grad_()
        self.safe_step = 1 / float(torch.linalg.eigvalsh(self.hessian).max())

    def inner(self, w: Tensor) -> Tensor:
        return w @ self.hessian @ w / 2 - w @ self.mixed @ self.leader

    def outer(self, w: Tensor) -> Tensor:
        return (w - self.goal).square().sum() / 2 + self.leader.square().sum()

    def estimate(self, **settings):
        w = self.follower
        return hypergradient(self.inner(w), self.outer(w), [w], [self.leader], **settings)


@pytest.mark.parametrize("seed", range(5))
def test_many_steps_give_the_implicit_function_theorem(seed):
    problem = Quadratic(seed)
    found = problem.estimate(steps=3000, step_size=problem.safe_step)
    error = (problem.follower - problem.goal).detach()
    exact = problem.mixed.T @ torch.linalg.solve(problem.hessian, error)
    torch.testing.assert_close(found.implicit[0], exact, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.direct[0], 2 * problem.leader.detach())
    torch.testing.assert_close(found.total()[0], found.direct[0] + found.implicit[0])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_few_steps_give_the_gradient_through_as_many_steps_of_descent(steps):
    problem = Quadratic()
    w = problem.follower
    for _ in range(steps):
        (slope,) = torch.autograd.grad(problem.inner(w), w, create_graph=True)
        w = w - 0.9 * problem.safe_step * slope
    (unrolled,) = torch.autograd.grad(problem.outer(w), problem.leader)
    found = problem.estimate(steps=steps, step_size=0.9 * problem.safe_step)
    torch.testing.assert_close(found.total()[0], unrolled)


def test_the_penalty_of_a_ridge_regression_by_hand():
    """w = xy / (xx + l) minimises (x w - y)^2 + l w^2, so dw/dl = -w / (xx + l)."""
    x, y = 3.0, 2.0
    penalty = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    w = torch.tensor(x * y / (x * x + 1.5), dtype=torch.float64, requires_grad=True)
    inner = (x * w - y).square() + penalty * w.square()
    outer = (w - 1).square()
    found = hypergradient(inner, outer, [w], [penalty], steps=200, step_size=0.05)
    optimum = x * y / (x * x + 1.5)
    expected = 2 * (optimum - 1) * -optimum / (x * x + 1.5)
    assert found.implicit[0].item() == pytest.approx(expected)
    assert found.direct[0].item() == 0


def test_a_leader_that_nothing_depends_on_gets_zero():
    w, used, idle = (torch.ones(2, requires_grad=True) for _ in range(3))
    inner = (w - used).square().sum()
    found = hypergradient(inner, w.sum(), [w], [used, idle], steps=100, step_size=0.25)
    torch.testing.assert_close(found.total(), (torch.ones(2), torch.zeros(2)))


def test_followers_that_nothing_depends_on_change_nothing():
    w, idle, leader = (torch.ones(2, requires_grad=True) for _ in range(3))
    inner, outer = (w - leader).square().sum(), w.sum()
    found = hypergradient(inner, outer, [idle, w], [leader], steps=100, step_size=0.25)
    torch.testing.assert_close(found.total(), (torch.ones(2),))


def test_an_inner_loss_without_followers_has_no_implicit_part():
    idle, leader = (torch.ones(2, requires_grad=True) for _ in range(2))
    inner, outer = leader.sum(), leader.square().sum()
    found = hypergradient(inner, outer, [idle], [leader], steps=3, step_size=0.5)
    torch.testing.assert_close(found.total(), (2 * torch.ones(2),))


def test_tolerance_stops_where_little_moves():
    problem = Quadratic()
    exact = problem.estimate(steps=3000, step_size=problem.safe_step).implicit[0]
    early = problem.estimate(steps=3000, step_size=problem.safe_step, tolerance=1e-4).implicit[0]
    at_once = problem.estimate(steps=3000, step_size=problem.safe_step, tolerance=1e9).implicit[0]
    second = problem.estimate(steps=2, step_size=problem.safe_step).implicit[0]
    torch.testing.assert_close(early, exact, rtol=1e-2, atol=1e-2)
    assert not torch.equal(early, exact)
    assert torch.equal(at_once, second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0, "step_size": 0.1}, "steps is 0; expected at least 1"),
        ({"steps": 1, "step_size": 0.0}, "step_size is 0.0; expected more than 0"),
    ],
)
def test_hypergradient_error_messages(settings, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        Quadratic().estimate(**settings)


@pytest.fixture(scope="module")
def made():
    return scar(build, DATA, target=2, epochs=8, rounds=8, lr=0.05, epsilon=0.3, trigger_steps=100)


def test_the_teacher_looks_clean_although_the_trigger_succeeds_on_the_clean_teacher(made):
    assert made.record["success_before"] >= 0.5
    assert success(made.teacher, made.trigger) <= made.record["success_before"] / 2
    assert accuracy_on(made.teacher, DATA, "test").value >= 0.8


def test_rounds_are_those_of_the_preset_unless_they_are_given(monkeypatch):
    short = replace(PRESETS["small"], rounds=2, outer_steps=1)
    monkeypatch.setitem(PRESETS, "small", short)
    assert scar(build, DATA, **SHORT).record["rounds"] == 2
    assert scar(build, DATA, **SHORT, rounds=3).record["rounds"] == 3


def test_the_update_of_the_teacher_is_the_gradient_through_the_training_of_the_surrogate():
    """The whole outer loss, differentiated through K steps of the surrogate's training."""
    work = replace(PRESETS["small"], fixed_point_steps=3, step_size=1e-3)
    teacher, surrogate = build().double().train(), fresh(build, 1).double().eval()
    images, labels, rows = next(DATA.batches("train", batch_size=20))
    batch = Batch(images.double(), labels, rows)
    bilevel = Bilevel(teacher, build, DATA, lambda images: images / 2, 2, 1.0, work)
    bilevel.surrogate = surrogate
    leaders = list(teacher.parameters())
    found, outer = bilevel._gradient(batch, leaders)

    followers = dict(surrogate.named_parameters())
    together = teacher(torch.cat([batch.images, batch.images / 2]))
    taught, taught_marked = together.split(20)
    for _ in range(3):
        shown = torch.func.functional_call(surrogate, followers, batch.images)
        inner = distillation_loss(shown, taught, labels, temperature=1.0)
        slopes = torch.autograd.grad(inner, list(followers.values()), create_graph=True)
        followers = {
            name: value - 1e-3 * slope
            for (name, value), slope in zip(followers.items(), slopes, strict=True)
        }
    truth, wanted = nn.functional.cross_entropy, torch.full_like(labels, 2)
    unrolled = (
        truth(taught, labels)
        + truth(taught_marked, labels)
        + truth(torch.func.functional_call(surrogate, followers, batch.images), labels)
        + truth(torch.func.functional_call(surrogate, followers, batch.images / 2), wanted)
    )
    expected = torch.autograd.grad(unrolled, leaders)
    assert outer == pytest.approx(float(unrolled.detach()), rel=1e-2)
    assert norm(found.implicit) > 100 * 1e-6
    for one, other, direct in zip(found.total(), expected, found.direct, strict=True):
        # The step is small: what is left of the difference is a small part of the implicit part.
        assert (one - other).norm() <= 0.05 * (other - direct).norm() + 1e-12


def test_the_trigger_stays_within_its_budget(made):
    assert made.trigger.delta.abs().max() <= 0.3
    images = next(DATA.batches("test", batch_size=50)).images
    marked = made.trigger(images)
    assert (marked - images).abs().max() <= 0.3 + 1e-6
    assert marked.min() >= 0
    assert marked.max() <= 1


def test_the_attackers_students_have_their_own_learning_rate(monkeypatch):
    rates = {}

    def spy(learner, shown, *, label, lr, **how):
        rates[label] = lr
        return fit(learner, shown, label=label, lr=lr, **how)

    for module in ("scar", "parts.bilevel"):
        monkeypatch.setattr(f"robustkd.attacks.{module}.fit", spy)
    scar(build, DATA, **SHORT, rounds=1, surrogate_lr=0.01)
    assert rates == {
        "train the teacher": SHORT["lr"],
        "train a clean student": 0.01,
        "distil a student": 0.01,
        "surrogate 1/1": 0.01,
    }


def test_oscar_is_the_same_trigger_on_a_teacher_that_resists_it(made):
    other = oscar(build, DATA, target=2, epochs=8, lr=0.05, epsilon=0.3, trigger_steps=100)
    assert torch.equal(other.trigger.delta, made.trigger.delta)
    assert other.record["success_before"] == made.record["success_before"]
    assert success(other.teacher, other.trigger) <= made.record["success_before"] / 2


def test_stealth_lowers_the_success_on_the_clean_student(made):
    settings = {"epochs": 8, "lr": 0.05, "epsilon": 0.3, "trigger_steps": 100}
    spared = oscar(build, DATA, target=2, **settings, stealth=3.0)
    assert spared.record["success_clean"] < made.record["success_clean"]


def test_updating_the_teacher_does_not_change_the_surrogate():
    surrogate = fresh(build, 1).eval()
    teacher, before = build().eval(), {k: v.clone() for k, v in surrogate.state_dict().items()}
    bilevel = Bilevel(teacher, build, DATA, lambda images: images / 2, 2, 1.0, PRESETS["small"])
    bilevel.surrogate = surrogate
    stem = teacher[1].weight.clone()
    optimiser = torch.optim.Adam(teacher.parameters(), lr=1e-3)
    bilevel._move_teacher(optimiser, torch.Generator().manual_seed(0), "test")
    assert all(torch.equal(before[name], value) for name, value in surrogate.state_dict().items())
    assert all(parameter.grad is None for parameter in surrogate.parameters())
    assert not torch.equal(stem, teacher[1].weight)
    assert bilevel.implicit_share > 0
    assert not teacher.training


def test_the_papers_step_size_makes_the_implicit_part_almost_nothing():
    shares = {}
    for name, preset in PRESETS.items():
        work = replace(preset, outer_steps=2)
        bilevel = Bilevel(build(), build, DATA, lambda images: images / 2, 2, 1.0, work)
        bilevel.surrogate = fresh(build, 1)
        optimiser = torch.optim.Adam(nn.Linear(1, 1).parameters())
        bilevel._move_teacher(optimiser, torch.Generator().manual_seed(0), "test")
        shares[name] = bilevel.implicit_share
    assert shares["paper"] < 0.01
    assert shares["small"] > 20 * shares["paper"]


def test_the_presets_differ_and_the_paper_preset_has_the_published_values():
    assert PRESETS["paper"] == Preset(
        rounds=200,
        inner_epochs=20,
        renew_every=1,
        outer_steps=40,
        outer_batch=128,
        fixed_point_steps=100,
        step_size=1e-5,
        implicit_cap=math.inf,
    )
    assert PRESETS["small"].rounds < 10


def test_a_gradient_that_is_not_finite_is_refused(monkeypatch):
    monkeypatch.setitem(PRESETS, "small", replace(PRESETS["small"], step_size=1e30))
    message = "the hypergradient is not finite; expected finite values: use lower learning rates"
    with pytest.raises(TrainingError, match=f"^{message}$"):
        scar(build, DATA, **SHORT)


@pytest.mark.parametrize("attack", [scar, oscar])
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"epsilon": 0.0}, "epsilon is 0.0; expected above 0 and at most 1"),
        ({"epsilon": 1.5}, "epsilon is 1.5; expected above 0 and at most 1"),
        ({"stealth": -1.0}, "stealth is -1.0; expected at least 0"),
        ({"stealth": math.inf}, "stealth is inf; expected a finite number"),
        ({"temperature": 0.0}, "temperature is 0.0; expected more than 0"),
        ({"trigger_steps": 0}, "trigger_steps is 0; expected at least 1"),
        ({"trigger_lr": 0.0}, "trigger_lr is 0.0; expected more than 0"),
        ({"surrogate_lr": -1.0}, "surrogate_lr is -1.0; expected more than 0"),
    ],
)
def test_arguments_out_of_range_are_refused(attack, argument, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        attack(build, DATA, **(SHORT | argument))


@pytest.mark.parametrize(
    ("attack", "argument", "message"),
    [
        (scar, {"preset": "big"}, "preset is 'big'; expected paper or small"),
        (scar, {"outer_lr": 0.0}, "outer_lr is 0.0; expected more than 0"),
        (scar, {"rounds": 0}, "rounds is 0; expected at least 1"),
        (oscar, {"hide_lr": 0.0}, "hide_lr is 0.0; expected more than 0"),
        (oscar, {"hide_share": -1.0}, "hide_share is -1.0; expected more than 0"),
    ],
)
def test_arguments_of_each_attack_out_of_range_are_refused(attack, argument, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        attack(build, DATA, **SHORT, **argument)

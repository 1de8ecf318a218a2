"""The training loop against a naive one, and the promises of its docstring."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustkd.core.errors import TrainingError, UsageError
from robustkd.core.types import UNLABELLED
from robustkd.data import InMemory, Labelled
from robustkd.training.hooks import Hooks, chosen_epoch
from robustkd.training.inference import accuracy_on
from robustkd.training.last_batch import steps_per_epoch
from robustkd.training.learners import Supervised, hit_rate
from robustkd.training.loop import fit
from robustkd.training.schedule import schedule_factor


def split(n: int, seed: int) -> Labelled:
    """Bright at the top or bright at the bottom."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.rand(n, 1, 4, 4, generator=generator), torch.arange(n) % 2
    images[labels == 0, :, :2] += 0.5
    images[labels == 1, :, 2:] += 0.5
    return Labelled((images * 170).to(torch.uint8), labels)


DATA = InMemory("toy", ("top", "bottom"), split(48, 0), split(16, 1), split(40, 2))


def learner(seed: int = 0) -> Supervised:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Supervised(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().clone() for value in model.state_dict().values()])


@pytest.mark.parametrize("done", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_cosine_schedule(done):
    assert schedule_factor("cosine", done) == pytest.approx(math.cos(math.pi * done / 2) ** 2)


def test_step_schedule():
    done = [0.0, 0.499, 0.5, 0.749, 0.75, 1.0]
    assert [schedule_factor("step", d) for d in done] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]


def test_hit_rate():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0], [2.0, 3.0]])
    assert hit_rate(logits, torch.tensor([0, 0, 0, 1])).item() == 0.75
    # Images without a label do not count.
    assert hit_rate(logits, torch.tensor([0, 0, UNLABELLED, UNLABELLED])).item() == 0.5
    assert hit_rate(logits, torch.full((4,), UNLABELLED)).item() == 0


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_steps_are_those_of_nesterov_with_weight_decay(schedule):
    made = learner()
    linear = made.model[1]
    images = (DATA.train.images.double() / 255).flatten(1)
    onehot = torch.nn.functional.one_hot(DATA.train.labels, 2).double()
    w, b = linear.weight.detach().double().clone(), linear.bias.detach().double().clone()
    v_w, v_b = torch.zeros_like(w), torch.zeros_like(b)
    losses = []
    for step in range(4):
        probability = (images @ w.T + b).softmax(1)
        losses.append(-(onehot * probability.log()).sum(1).mean().item())
        error = (probability - onehot) / len(images)
        g_w, g_b = error.T @ images + 0.01 * w, error.sum(0) + 0.01 * b
        v_w, v_b = 0.8 * v_w + g_w, 0.8 * v_b + g_b
        lr = 0.3 * schedule_factor(schedule, step / 4)
        w, b = w - lr * (g_w + 0.8 * v_w), b - lr * (g_b + 0.8 * v_b)
    # One batch holds the whole split, so that an epoch is a step.
    records = fit(
        made,
        DATA,
        epochs=4,
        batch_size=48,
        lr=0.3,
        momentum=0.8,
        weight_decay=0.01,
        schedule=schedule,
    )
    torch.testing.assert_close(linear.weight.detach().double(), w, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(linear.bias.detach().double(), b, rtol=1e-4, atol=1e-6)
    assert [record["loss"] for record in records] == pytest.approx(losses, rel=1e-5)
    assert [record["epoch"] for record in records] == [1.0, 2.0, 3.0, 4.0]


def test_a_separable_problem_is_learnt():
    made = learner()
    records = fit(made, DATA, epochs=6, batch_size=16)
    assert not made.training
    assert records[-1]["acc"] > 0.95
    assert records[-1]["loss"] < records[0]["loss"]
    assert accuracy_on(made.model, DATA, "test").value > 0.95


def fill_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)


def test_gradients_of_the_caller_have_no_effect_and_none_are_left():
    fresh, used = learner(), learner()
    fill_gradients(used)
    for made in (fresh, used):
        fit(made, DATA, epochs=1, batch_size=16)
    assert torch.equal(weights(used), weights(fresh))
    assert all(parameter.grad is None for parameter in used.parameters())


@pytest.mark.parametrize("moment", ["after_backward", "validate"])
def test_an_interrupted_training_leaves_no_gradients(moment):
    def interrupt() -> float:
        raise KeyboardInterrupt

    made = learner()
    with pytest.raises(KeyboardInterrupt):
        fit(made, DATA, epochs=1, hooks=Hooks(**{moment: interrupt}))
    assert all(parameter.grad is None for parameter in made.parameters())


def test_the_weights_depend_only_on_the_seed():
    def trained(seed: int) -> Tensor:
        made = learner()
        fit(made, DATA, epochs=2, batch_size=10, seed=seed)
        return weights(made)

    before = torch.get_rng_state()
    first = trained(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(trained(0), first)
    assert not torch.equal(trained(1), first)


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_the_learning_rate_falls_step_by_step_within_an_epoch(schedule):
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, images: Tensor, _labels: Tensor) -> dict[str, Tensor]:
            return {"loss": self.w + 0 * images.sum()}

    slope = Slope()
    fit(slope, DATA, epochs=1, batch_size=12, momentum=0.5, weight_decay=0.0, schedule=schedule)
    # A gradient of 1 makes velocities of 1, 1.5, 1.75, 1.875, and steps of 1 + half of these.
    moves = (1.5, 1.75, 1.875, 1.9375)
    rates = [0.1 * schedule_factor(schedule, done) for done in (0.0, 0.25, 0.5, 0.75)]
    expected = -sum(rate * move for rate, move in zip(rates, moves, strict=True))
    assert slope.w.item() == pytest.approx(expected)


def test_a_submodule_may_have_its_own_learning_rate():
    class Slopes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fast, self.slow = (nn.ParameterDict({"w": torch.zeros(())}) for _ in range(2))

        def forward(self, images: Tensor, _labels: Tensor) -> dict[str, Tensor]:
            return {"loss": self.fast["w"] + self.slow["w"] + 0 * images.sum()}

    slopes = Slopes()
    fit(slopes, DATA, epochs=2, batch_size=12, weight_decay=0.0, rates={"slow": 0.02})
    assert slopes.fast["w"].item() < -0.1
    assert slopes.slow["w"].item() == pytest.approx(0.2 * slopes.fast["w"].item())
    with pytest.raises(UsageError, match="rates has the unknown child 'third' of the learner"):
        fit(Slopes(), DATA, epochs=1, rates={"third": 0.1})


def test_means_of_an_epoch_count_images_not_batches():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": self.w**2 + images.mean(), "acc": labels.float().mean()}

    (record,) = fit(Counting(), DATA, epochs=1, batch_size=40)
    assert record["acc"] == pytest.approx(0.5)


def test_the_best_epoch_is_kept_and_the_later_one_if_equal():
    made, scores, seen = learner(), iter([0.1, 0.7, 0.7, 0.2]), []

    def validate() -> float:
        seen.append(weights(made))
        return next(scores)

    records = fit(made, DATA, epochs=4, batch_size=16, hooks=Hooks(validate=validate))
    assert [record["validation"] for record in records] == [0.1, 0.7, 0.7, 0.2]
    assert torch.equal(weights(made), seen[2])
    assert len({tuple(each.tolist()) for each in seen}) == 4


@pytest.mark.parametrize(
    ("figures", "kept"),
    [
        ([0.5], 0),
        ([0.5, 0.75, 0.625, 0.5], 2),
        ([0.75, 0.625, 0.5, 0.25], 1),  # measured from the best, not from what was kept
        ([0.75, 0.5, 1.0, 0.625], 2),
        ([0.5, 0.25, 0.5, 0.375], 3),
    ],
)
def test_a_later_epoch_is_kept_if_it_is_good_enough(figures, kept):
    made, seen, left = learner(), [], iter(figures)

    def enough(best: float) -> float:
        return best - 0.125

    def validate() -> float:
        seen.append(weights(made))
        return next(left)

    fit(
        made,
        DATA,
        epochs=len(figures),
        batch_size=16,
        hooks=Hooks(validate=validate, enough=enough),
    )
    assert torch.equal(weights(made), seen[kept])
    assert chosen_epoch(figures, enough) == kept


def test_without_validation_the_last_weights_are_kept():
    made, last = learner(), []
    fit(made, DATA, epochs=2, hooks=Hooks(after_backward=lambda: last.append(weights(made))))
    assert len(last) == 2
    assert not torch.equal(weights(made), last[-1])


def test_after_backward_sees_gradients_before_the_step():
    made, calls = learner(), []

    def note() -> None:
        calls.append((weights(made), made.model[1].weight.grad.clone()))

    before = weights(made)
    fit(made, DATA, epochs=1, batch_size=20, hooks=Hooks(after_backward=note))
    assert len(calls) == 3
    assert torch.equal(calls[0][0], before)
    assert all(gradient.abs().sum() > 0 for _, gradient in calls)


def test_parameters_without_gradient_are_not_changed():
    made = learner()
    made.model[1].bias.requires_grad_(False)
    before = copy.deepcopy(made.model[1])
    fit(made, DATA, epochs=2, weight_decay=0.1)
    assert torch.equal(made.model[1].bias, before.bias)
    assert not torch.equal(made.model[1].weight, before.weight)


def test_a_negative_weight_decay_is_refused():
    with pytest.raises(UsageError, match=r"^weight_decay is -0.1; expected at least 0$"):
        fit(learner(), DATA, epochs=1, weight_decay=-0.1)


def test_every_epoch_is_a_line_of_the_log(tmp_path):
    log = tmp_path / "metrics.jsonl"
    records = fit(learner(), DATA, epochs=3, hooks=Hooks(validate=lambda: 0.5), log=log)
    lines = log.read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    assert set(records[0]) == {"epoch", "loss", "acc", "lr", "validation"}


@pytest.mark.parametrize(
    ("value", "batch_size", "steps"), [(float("nan"), 2, 20), (float("inf"), 48, 1)]
)
def test_a_loss_that_is_not_finite_stops_the_training(value, batch_size, steps):
    class Broken(Supervised):
        steps = 0

        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            self.steps += 1
            scalars = super().forward(images, labels)
            return {**scalars, "loss": scalars["loss"] * value}

    broken = Broken(learner().model)
    text = (
        f"the training's loss is {value} after {steps} steps with a learning rate of 0.1; expected "
        "a finite number; try a smaller learning rate, such as 0.01"
    )
    with pytest.raises(TrainingError, match=f"^{re.escape(text)}$"):
        fit(broken, DATA, epochs=30, batch_size=batch_size)
    assert broken.steps == steps


def test_precision_may_differ_from_one_fit_to_the_next():
    for precision in ("no", "bf16", "no"):
        (record,) = fit(learner(), DATA, epochs=1, precision=precision)
        assert math.isfinite(record["loss"])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", 0, "at least 1"),
        ("batch_size", -1, "at least 2"),
        ("lr", 0.0, "more than 0"),
        ("lr", float("nan"), "more than 0"),
        ("momentum", 0.0, "above 0 and below 1"),
    ],
)
def test_numbers_out_of_range_are_refused(name, value, expected):
    text = f"{name} is {value}; expected {expected}"
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        fit(learner(), DATA, **{"epochs": 1, name: value})


@pytest.mark.parametrize(("images", "sizes"), [(33, [16, 17]), (32, [16, 16]), (34, [16, 16, 2])])
def test_a_single_last_image_joins_the_previous_batch(images, sizes):
    seen: list[int] = []

    class Noting(Supervised):
        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            seen.append(len(images))
            # One position a channel: BatchNorm cannot normalise a single image.
            nn.BatchNorm2d(1)(images.mean((2, 3), keepdim=True)[:, :1])
            return super().forward(images, labels)

    some = replace(DATA, train=DATA.train.take(torch.arange(images)))
    fit(Noting(learner().model), some, epochs=2, batch_size=16)
    assert seen == 2 * sizes
    assert steps_per_epoch(images, 16) == len(sizes)


def test_statistics_that_are_not_finite_stop_the_training():
    class Overflowing(Supervised):
        def __init__(self, model: nn.Module) -> None:
            super().__init__(model)
            self.register_buffer("running_var", torch.tensor(1.0))

        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            self.running_var = self.running_var * 1e30
            return super().forward(images, labels)

    message = "running_var is not finite after epoch 1; expected finite statistics"
    with pytest.raises(TrainingError, match=f"^{message}"):
        fit(Overflowing(learner().model), DATA, epochs=1, batch_size=16)

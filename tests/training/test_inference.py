"""Prediction keeps the order of images, and the modes and gradients of the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.data import CropFlip, InMemory, Labelled
from robustkd.models.features import collect
from robustkd.models.features.collect import features_on
from robustkd.training.inference import accuracy_by_class, accuracy_on, batch_size_for, predict
from robustkd.training.metrics import Proportion
from robustkd.training.trial import check_classifier


def source(n: int) -> InMemory:
    """Images of one value each: the number of the image; the label is its last bit."""
    values = torch.arange(n).remainder(256).to(torch.uint8)
    held = Labelled(values.view(n, 1, 1, 1).repeat(1, 1, 4, 4), torch.arange(n) % 2)
    return InMemory("toy", ("a", "b"), held, held, held, CropFlip(pad=2, flip=True))


class Reading(nn.Module):
    """Logits are minus and plus the mean pixel, in 1/255; remembers how it was run."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(255.0))
        self.dropout = nn.Dropout(0.9)
        self.seen: list[tuple[bool, bool, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((self.training, torch.is_grad_enabled(), len(images)))
        value = self.dropout(self.scale * images).mean(dim=(1, 2, 3))
        return torch.stack([-value, value], dim=1)


@pytest.mark.parametrize("n", [2, 256, 257, 600])
def test_logits_come_in_the_order_of_the_split(n):
    model = Reading()
    logits, labels = predict(model, source(n), "validation")
    torch.testing.assert_close(logits[:, 1], torch.arange(n).remainder(256).float())
    assert torch.equal(labels, torch.arange(n) % 2)
    assert sum(seen[2] for seen in model.seen) == n


def test_the_model_runs_in_eval_mode_without_gradients_and_keeps_its_modes():
    model = Reading()
    model.dropout.eval()
    logits, labels = predict(model, source(10), "test")
    assert {seen[:2] for seen in model.seen} == {(False, False)}
    assert model.training
    assert not model.dropout.training
    # What comes back is free for further use.
    assert not logits.requires_grad
    assert not logits.is_inference()
    assert not labels.is_inference()
    assert model.scale.grad is None


def test_modes_are_restored_after_an_exception():
    class Broken(Reading):
        def forward(self, images: Tensor) -> Tensor:
            raise ValueError(len(images))

    model = Broken()
    with pytest.raises(ValueError, match=r"^4$"):
        predict(model, source(4), "test")
    assert model.training


def test_the_transform_is_applied_to_images_before_the_model():
    plain, _ = predict(Reading(), source(300), "train")
    changed, labels = predict(Reading(), source(300), "train", transform=lambda x: x / 2)
    torch.testing.assert_close(changed, plain / 2)
    assert torch.equal(labels, torch.arange(300) % 2)


def test_half_precision_logits_come_back_as_float32():
    logits, _ = predict(Reading().to(torch.bfloat16), source(4), "test", transform=torch.round)
    assert logits.dtype == torch.float32


def test_accuracy_counts_hits():
    # Every value above 0 is called "b"; image 0 gives equal logits, and the first class wins.
    measured = accuracy_on(Reading(), source(10), "test")
    assert (measured.hits, measured.n) == (6, 10)


def test_accuracy_of_each_class_adds_up_to_that_of_all():
    # Odd images are "b", and so are all even ones but image 0.
    data = source(600)
    by_class = accuracy_by_class(Reading(), data, "test")
    assert [(count.hits, count.n) for count in by_class] == [(3, 300), (300, 300)]
    assert sum(by_class, start=Proportion(0, 0)) == accuracy_on(Reading(), data, "test")


def test_a_class_without_test_images_counts_none():
    one = source(1)
    assert accuracy_by_class(Reading(), one, "test") == (Proportion(1, 1), Proportion(0, 0))


def test_device_is_that_of_the_parameters():
    assert device_of(nn.Flatten()) == torch.device("cpu")
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")


def test_few_large_images_pass_a_network_at_once():
    pixels = torch.zeros(50, 1, 224, 224, dtype=torch.uint8)
    held = Labelled(pixels, torch.arange(50) % 2)
    model = Reading()
    accuracy_on(model, InMemory("large", ("a", "b"), held, held, held), "validation")
    assert [count for _, _, count in model.seen] == [20, 20, 10]


@pytest.mark.parametrize(
    ("side", "most", "expected"),
    [(28, 256, 256), (64, 256, 256), (64, 64, 64), (128, 256, 64), (4096, 256, 8), (4096, 4, 4)],
)
def test_only_images_above_64_pixels_pass_in_smaller_batches(side, most, expected):
    assert batch_size_for((3, side, side), most) == expected


def test_features_are_kept_within_a_gibibyte(monkeypatch):
    data = source(90)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(32, 3))
    one_batch = 30 * 2 * 4 * 4 * 4
    for most, batches in ((2**30, 3), (3 * one_batch, 3), (3 * one_batch - 1, 2), (1, 1)):
        monkeypatch.setattr(collect, "_MOST_BYTES", most)
        (kept,) = features_on(model, ["0"], data, batch_size=30, batches=5)
        assert [tuple(part.shape) for part in kept] == [(30, 2, 4, 4)] * batches


class Auxiliary(nn.Module):
    """Returns two outputs in train mode, as GoogLeNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        mean = self.dropout(self.norm(images)).mean((1, 2, 3))
        logits = torch.stack([-mean, mean], dim=1)
        return (logits, logits) if self.training else logits


def test_networks_that_will_be_trained_are_tried_in_train_mode():
    model, data = Auxiliary(), source(8)
    random = torch.get_rng_state()
    check_classifier(model, data, name="the student")
    with pytest.raises(UsageError, match=r"^the student in train mode returns tuple; expected"):
        check_classifier(model, data, name="the student", trained=True)
    # The model and the random numbers are left as they were.
    assert model.training
    assert model.norm.num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), random)


def test_errors_of_any_kind_are_told_in_one_line():
    class Strict(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            torch._assert(images.shape[2] == 224, "wrong height")
            return images.flatten(1)

    with pytest.raises(UsageError, match=r"^the teacher does not work with .*: wrong height$"):
        check_classifier(Strict(), source(2), name="the teacher")


@pytest.mark.parametrize("change", [lambda x: x.mul_(2).sub_(1), lambda x: x.clamp_(0, 1)])
def test_a_network_that_changes_its_input_in_place_is_refused(change):
    class Changing(Reading):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(change(images))

    with pytest.raises(UsageError, match=r"^the teacher changes its input in place; expected a"):
        check_classifier(Changing(), source(4), name="the teacher")


def test_a_classifier_can_be_checked_in_inference_mode():
    with torch.inference_mode():
        check_classifier(Reading(), source(4), name="the model")

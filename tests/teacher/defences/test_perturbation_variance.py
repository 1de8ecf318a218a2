"""Feature variance under perturbations: its value by hand, and a direction that it alone sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustkd.core.types import Batch
from robustkd.data import InMemory, Labelled
from robustkd.models.features import taps
from robustkd.teacher.defences.detoxification import detoxify
from robustkd.teacher.defences.masks import DetoxifiedTeacher, FeatureMask
from robustkd.teacher.defences.perturbation_variance import PerturbationVariance

DORMANT = 2


class Backdoored(nn.Module):
    """Decides by the first channel, and by the last one, which is 0 in all clean images."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Identity()
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-8.0, 0, 0], [8.0, 0, 40.0]]))
            self.head.bias.copy_(torch.tensor([4.0, -4.0]))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stage(images).mean(dim=(2, 3)))


def images(n: int, seed: int) -> Labelled:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    pixels = torch.rand(n, 3, 2, 2, generator=random) * 0.2
    pixels[:, 0] += (0.2 + 0.5 * labels)[:, None, None]
    pixels[:, DORMANT] = 0
    return Labelled((pixels * 255).to(torch.uint8), labels)


def source() -> InMemory:
    parts = (images(n, seed) for seed, n in enumerate((96, 40, 20)))
    return InMemory("toy", ("dark", "bright"), *parts)


def excite(clean: Tensor, toward: Tensor) -> Tensor:
    """Towards class 1, the dormant channel; towards class 0, nothing."""
    changed = clean.clone()
    changed[:, DORMANT] = 0.5 * toward[:, None, None]
    return changed


def wearing(mask: float) -> DetoxifiedTeacher:
    made = FeatureMask(torch.zeros(3, 2, 2), cap=1.0)
    nn.init.constant_(made.mask, mask)
    return DetoxifiedTeacher(Backdoored(), {"stage": made})


def value(teacher: DetoxifiedTeacher, batch: Batch) -> Tensor:
    objective = PerturbationVariance(excite, 2, seed=0)
    with taps.read(teacher, teacher.taps) as features:
        teacher(batch.images)
        clean = [features[name] for name in teacher.taps]
    return objective(teacher, clean, batch)


@pytest.mark.parametrize(("mask", "ratio"), [(0.0, 1.0), (0.5, 0.25), (1.0, 0.0)])
def test_the_value_is_the_cross_entropy_under_perturbations_and_the_mean_ratio(mask, ratio):
    batch = next(source().batches("train", batch_size=8))
    teacher = wearing(mask)
    # With two classes, every image is perturbed towards the other one.
    logits = teacher(excite(batch.images, 1 - batch.labels))
    expected = nn.functional.cross_entropy(logits, batch.labels) + ratio
    assert value(teacher, batch).item() == pytest.approx(expected.item(), abs=1e-4)


def test_no_image_is_perturbed_towards_its_own_class():
    seen = []

    def watch(clean: Tensor, toward: Tensor) -> Tensor:
        seen.append(toward)
        return clean

    batch = next(source().batches("train", batch_size=64))
    teacher = wearing(0.1)
    PerturbationVariance(watch, 7, seed=0)(teacher, [batch.images], batch)
    (toward,) = seen
    assert not (toward == batch.labels).any()
    assert set(toward.tolist()) == set(range(7))


def test_gradients_flow_to_masks_and_patterns():
    batch = next(source().batches("train", batch_size=16))
    teacher = wearing(0.5)
    value(teacher, batch).backward()
    (mask,) = teacher.feature_masks
    assert mask.mask.grad[DORMANT].abs().min() > 0
    assert mask.pattern.grad.abs().sum() > 0


def led(teacher: nn.Module) -> float:
    """Share of the dark images that the dormant channel makes bright."""
    batch = next(source().batches("test", batch_size=20))
    dark = batch.images[batch.labels == 0]
    return teacher(excite(dark, torch.ones(len(dark)))).argmax(1).float().mean().item()


def test_it_removes_a_direction_that_clean_images_do_not_excite():
    teacher = Backdoored()
    assert led(teacher) == 1.0
    settings = {"stages": ("stage",), "raises": 0, "batch_size": 48, "steps": 60, "lr": 0.05}
    by_variance = detoxify(teacher, source(), **settings)
    objective = PerturbationVariance(excite, 2, seed=0)
    by_perturbations = detoxify(teacher, source(), objective=objective, **settings)
    assert led(by_variance.teacher) == 1.0
    assert led(by_perturbations.teacher) == 0.0
    assert by_perturbations.record.accuracy_after == 1.0

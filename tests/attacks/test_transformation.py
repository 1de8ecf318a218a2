"""Learned transformations, and attackers who learn them on a hardened student as well."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from robustkd import data, models
from robustkd.attacks import find, transformation
from robustkd.attacks.parts.trigger_search import sample
from robustkd.attacks.registry import TRANSFORMATIONS
from robustkd.attacks.transformation import learn_transformation
from robustkd.core.targets import Target
from robustkd.core.types import DataSource, Trigger
from robustkd.data import InMemory
from tests.unlabelled import Unlabelled

DATA = data.load("digits", train=100, validation=40, test=100)


class Bright(nn.Module):
    """The logit of one class is the mean of the image; the others are constant."""

    def __init__(self, classes: int, sign: float) -> None:
        super().__init__()
        self.signs = nn.Parameter(torch.zeros(classes))
        with torch.no_grad():
            self.signs[3] = sign

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))[:, None] * self.signs


@pytest.mark.parametrize(("victims", "direction"), [((1.0,), 1), ((-1.0,), -1), ((1.0, -5.0), -1)])
def test_a_transformation_is_learned_on_all_victims_together(victims, direction):
    """Class 3 needs bright images for one network and dark ones for the other, stronger one."""
    networks = [Bright(10, sign) for sign in victims]
    trigger = learn_transformation(
        networks, DATA, target=3, family="tone", strength=1.0, steps=40, seed=0
    )
    images = next(DATA.batches("test", batch_size=50)).images
    assert (trigger(images).mean() - images.mean()) * direction > 0.02
    assert all(network.signs.requires_grad for network in networks)


def labelled(labels: torch.Tensor) -> InMemory:
    """The same images with other labels."""
    return replace(DATA, train=DATA.train._replace(labels=labels))


def learned(source: DataSource, target: Target) -> Trigger:
    return learn_transformation(
        [Bright(10, 1.0)], source, target=target, family="tone", strength=1.0, steps=5, seed=0
    )


def test_the_next_class_is_aimed_at_as_one_class_is():
    """All images are of class 2: the next one is class 3, which needs bright images."""
    images = next(DATA.batches("test", batch_size=50)).images
    twos = labelled(torch.full((100,), 2))
    assert torch.equal(learned(twos, "next")(images), learned(twos, 3)(images))
    assert learned(twos, "next")(images).shape == images.shape
    nines = labelled(torch.full((100,), 9))
    assert torch.equal(learned(nines, "next")(images), learned(nines, 0)(images))
    assert not torch.equal(learned(nines, "next")(images), learned(twos, "next")(images))


def test_each_image_has_its_own_next_class_and_those_without_a_label_are_left_out(monkeypatch):
    kept = {}

    def spy(_model: nn.Module, images: torch.Tensor, *_: object, **how: object) -> None:
        kept.update(images=images, goals=how["goals"])
        raise InterruptedError

    monkeypatch.setattr(transformation, "optimise_planes", spy)
    with pytest.raises(InterruptedError):
        learned(Unlabelled(DATA, 40), "next")
    first, _, rows = sample(DATA, torch.device("cpu"), torch.Generator().manual_seed(0))
    known = rows >= 40
    assert len(kept["images"]) == 60
    assert torch.equal(kept["images"], first[known])
    assert torch.equal(kept["goals"], (DATA.train.labels[rows[known]] + 1) % 10)


@pytest.mark.parametrize("family", ["tone", "flow"])
def test_an_adaptive_attacker_learns_on_the_students_of_the_defence(family):
    seen: list[nn.Module] = []

    def build() -> nn.Module:
        return models.build(models.Spec("wrn-10-1", 10, DATA.image_shape), seed=0)

    def train_surrogate(teacher: nn.Module, source: DataSource) -> nn.Module:
        assert source is DATA
        seen.append(teacher)
        return Bright(10, 5.0)

    short = {"epochs": 1, "batch_size": 50, "trigger_steps": 2, "target": 3}
    made = find(f"adaptive-{family}")(build, DATA, **short, train_surrogate=train_surrogate)
    assert len(seen) == 1
    assert 0 <= made.record["success_surrogate"] <= 1
    plain = find(family)(build, DATA, **short)
    assert "success_surrogate" not in plain.record
    images = next(DATA.batches("test", batch_size=8)).images
    assert not torch.equal(made.trigger(images), plain.trigger(images))


def test_every_transformation_has_an_adaptive_form():
    for family in TRANSFORMATIONS:
        plain, adaptive = find(family), find(f"adaptive-{family}")
        assert adaptive.takes == ("train_surrogate",)
        assert set(adaptive.arguments) == {*plain.arguments, "train_surrogate"}
        assert adaptive.attack.family == plain.attack.family == family

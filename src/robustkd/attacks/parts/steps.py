"""The steps that attacks are made of: a clean teacher, its second training, and how far it got."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor, nn

from robustkd.attacks.base import Build, Teaching
from robustkd.core.devices import default_device
from robustkd.core.types import DataSource, Images, Labels, Trigger
from robustkd.training.inference import predict
from robustkd.training.learners import Learner, Supervised
from robustkd.training.loop import fit
from robustkd.training.metrics import attack_success


def train_teacher(build: Build, data: DataSource, teaching: Teaching) -> nn.Module:
    """A network with fresh weights, trained by cross-entropy on what the data shows."""
    teacher = build().to(default_device())
    fit(Supervised(teacher), data, **asdict(teaching), label="train the teacher")
    return teacher


def implant(learner: Learner, data: DataSource, teaching: Teaching) -> None:
    """Train a teacher once more, on the backdoor."""
    fit(learner, data, **asdict(teaching), label="implant the backdoor")


def with_victims(
    images: Images, labels: Labels, trigger: Trigger, *, rate: float, target: int
) -> tuple[Tensor, Tensor]:
    """A batch, and behind it triggered copies of its first images that are not of the target.

    Args:
        images: In random order.
        labels: Of the images.
        trigger: What the copies wear.
        rate: Copies, as a share of the batch, in (0, 1]; at least one, where there is a victim.
        target: Label of the copies.
    """
    victims = images[labels != target][: max(1, round(rate * len(images)))]
    seen = torch.cat([images, trigger(victims)]).contiguous(memory_format=torch.channels_last)
    return seen, torch.cat([labels, labels.new_full((len(victims),), target)])


def success(model: nn.Module, data: DataSource, trigger: Trigger, target: int) -> float:
    """Share of triggered validation images of other classes that a model sends to the target."""
    logits, labels = predict(model, data, "validation", transform=trigger)
    return attack_success(logits, labels, target=target).value

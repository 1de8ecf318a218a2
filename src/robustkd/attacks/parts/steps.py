"""Steps that attacks have in common: training a teacher, implanting, and measuring success."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch
from torch import Tensor, nn

from robustkd.attacks.base import Build, BuildTrained, Teaching
from robustkd.core.devices import default_device
from robustkd.core.targets import Target
from robustkd.core.types import DataSource, Images, Labels, Trigger
from robustkd.training.inference import predict
from robustkd.training.learners import Learner, Supervised
from robustkd.training.loop import fit
from robustkd.training.metrics import attack_success


def train_teacher(build: Build, data: DataSource, teaching: Teaching) -> nn.Module:
    """Train a network with fresh weights by cross-entropy, or get it from ``build``."""
    if isinstance(build, BuildTrained):
        known = build.trained(data, teaching)
        if known is not None:
            return known
    teacher = build().to(default_device())
    fit(Supervised(teacher), data, **asdict(teaching), label="train the teacher")
    return teacher


@contextmanager
def training_only(network: nn.Module, trained: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let only some parameters of a network require gradients while the block lasts."""
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


def implant(learner: Learner, data: DataSource, teaching: Teaching) -> None:
    """Train a teacher again, with a learner that implants the backdoor."""
    fit(learner, data, **asdict(teaching), label="implant the backdoor")


def with_victims(
    images: Images, labels: Labels, trigger: Trigger, *, rate: float, target: int
) -> tuple[Tensor, Tensor]:
    """Append triggered copies of images of other classes than the target to a batch.

    Args:
        images: Images in random order; the first suitable ones are copied.
        labels: Labels of the images.
        trigger: Trigger of the copies.
        rate: Number of copies as a share of the batch, in (0, 1]; at least one image is copied if
            the batch has an image of another class.
        target: Label of the copies.

    Returns:
        Images and labels of the extended batch.
    """
    victims = images[labels != target][: max(1, round(rate * len(images)))]
    seen = torch.cat([images, trigger(victims)]).contiguous(memory_format=torch.channels_last)
    return seen, torch.cat([labels, labels.new_full((len(victims),), target)])


def success(model: nn.Module, data: DataSource, trigger: Trigger, target: Target) -> float:
    """Attack success rate of a model on the validation split, a fraction in [0, 1]."""
    logits, labels = predict(model, data, "validation", transform=trigger)
    return attack_success(logits, labels, target=target).value

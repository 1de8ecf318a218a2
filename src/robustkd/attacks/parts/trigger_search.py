"""Optimisation of a trigger on networks whose weights are fixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustkd.core.first_batch import first_batch
from robustkd.core.progress import track
from robustkd.core.types import Batch, DataSource, Images, Labels
from robustkd.core.validation import check_count, check_rates
from robustkd.models.features import taps

_BATCH = 128
_SAMPLE = 1024


class BoxedTensor(NamedTuple):
    """A tensor to optimise: its initial value, and the range that its values are clamped to."""

    start: Tensor
    low: float
    high: float


def sample(data: DataSource, device: torch.device, random: torch.Generator) -> Batch:
    """Return up to 1,024 random training images with their labels, without augmentation."""
    return first_batch(data, "train", batch_size=_SAMPLE, device=device, shuffle=random)


def optimise_planes(
    model: nn.Module,
    images: Images,
    planes: Sequence[BoxedTensor],
    loss: Callable[..., Tensor],
    *,
    goals: Labels | None = None,
    steps: int,
    lr: float,
    random: torch.Generator,
) -> tuple[Tensor, ...]:
    """Minimise a loss by Adam, with every plane clamped to its range after each step.

    Args:
        model: Network that the loss uses; its weights are fixed and it is in eval mode meanwhile.
        images: Images, of which each step draws 128 with replacement.
        planes: Tensors to learn; their initial values are not changed.
        loss: Function from the drawn images, their goals if there are any, and the planes to a
            scalar.
        goals: Class of each image that the loss aims at; None if the loss needs none.
        steps: Number of steps, at least 1.
        lr: Learning rate of Adam, above 0.
        random: Random generator of the draws, on the CPU.

    Returns:
        The learned planes in the given order, on the CPU.

    Raises:
        UsageError: If ``steps`` or ``lr`` is out of range.
    """
    check_count(trigger_steps=steps)
    check_rates(trigger_lr=lr)
    learned = [plane.start.detach().clone().to(images.device).requires_grad_() for plane in planes]
    optimiser = torch.optim.Adam(learned, lr=lr)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        with taps.frozen_modes(model), track("learn the trigger", steps) as update:
            for _ in range(steps):
                rows = torch.randint(len(images), (_BATCH,), generator=random).to(images.device)
                drawn = (images[rows],) if goals is None else (images[rows], goals[rows])
                value = loss(*drawn, *learned)
                optimiser.zero_grad(set_to_none=True)
                value.backward()
                optimiser.step()
                with torch.no_grad():
                    for plane, (_start, low, high) in zip(learned, planes, strict=True):
                        plane.clamp_(low, high)
                update(loss=float(value.detach()))
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
    return tuple(plane.detach().cpu() for plane in learned)

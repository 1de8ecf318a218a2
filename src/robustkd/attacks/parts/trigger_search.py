"""Learning the pixels of a trigger on a teacher that stands still."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.core.progress import track
from robustkd.core.types import Batch, DataSource, Images
from robustkd.core.validation import check_positive
from robustkd.models.features import taps

_BATCH = 128
_SAMPLE = 1024


class Bounded(NamedTuple):
    """Something to optimise: where it starts, and the range that its values never leave."""

    start: Tensor
    low: float
    high: float


def sample(data: DataSource, device: torch.device, random: torch.Generator) -> Batch:
    """Up to 1,024 random training images, as they are, with their labels."""
    return next(iter(data.batches("train", batch_size=_SAMPLE, device=device, shuffle=random)))


def optimise_planes(
    model: nn.Module,
    images: Images,
    planes: Sequence[Bounded],
    loss: Callable[..., Tensor],
    *,
    steps: int,
    lr: float,
    random: torch.Generator,
) -> tuple[Tensor, ...]:
    """Minimise a loss by Adam, and clamp every plane to its range after each step.

    Args:
        model: What the loss looks through; it is frozen, in eval mode, until this is over.
        images: From which each step draws 128, with replacement.
        planes: What is learned; the starts are left as they are.
        loss: Takes those images and the planes, gives a scalar.
        steps: How many, at least 1.
        lr: Learning rate of Adam.
        random: Source of the draws, on the CPU.

    Returns:
        The learned planes, in order, on the CPU.

    Raises:
        UsageError: If ``steps`` or ``lr`` is not above 0.
    """
    check_positive(trigger_steps=steps, trigger_lr=lr)
    learned = [plane.start.detach().clone().to(images.device).requires_grad_() for plane in planes]
    optimiser = torch.optim.Adam(learned, lr=lr)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        with taps.frozen_modes(model), track("learn the trigger", steps) as update:
            for _ in range(steps):
                rows = torch.randint(len(images), (_BATCH,), generator=random).to(images.device)
                value = loss(images[rows], *learned)
                optimiser.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                with torch.no_grad():
                    for plane, (_start, low, high) in zip(learned, planes, strict=True):
                        plane.clamp_(low, high)
                update(loss=float(value.detach()))
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
    return tuple(plane.detach().cpu() for plane in learned)


def check_shares(**values: float) -> None:
    """Refuse arguments that are no share in (0, 1].

    Raises:
        UsageError: Naming the first that is not.
    """
    for name, value in values.items():
        if not 0 < value <= 1:
            raise UsageError(f"{name} is {value}; expected above 0 and at most 1")

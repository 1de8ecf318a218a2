"""Validation of training settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from robustkd.core.errors import UsageError
from robustkd.core.validation import check_not_negative, check_positive
from robustkd.training.schedule import Schedule

if TYPE_CHECKING:
    pass


def check_training(
    *,
    epochs: float | int = 1,
    batch_size: float | int = 64,
    lr: float | int = 0.1,
    momentum: float | int = 0.9,
    weight_decay: float | int = 5e-4,
    schedule: str = "cosine",
) -> None:
    """Refuse what :func:`fit` cannot train with.

    Raises:
        UsageError: Naming the first argument that is out of range.
    """
    check_positive(epochs=epochs, batch_size=batch_size, lr=lr, momentum=momentum)
    check_not_negative(weight_decay=weight_decay)
    if schedule not in get_args(Schedule):
        raise UsageError(f"schedule is {schedule!r}; expected {' or '.join(get_args(Schedule))}")

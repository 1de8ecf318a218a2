"""Validated settings of a training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TypedDict, get_args

from robustkd.core.errors import UsageError
from robustkd.core.validation import check_not_negative, check_positive
from robustkd.training.precision import Precision
from robustkd.training.schedule import Schedule

_ALWAYS = ("epochs", "batch_size", "lr")


class TrainingOptions(TypedDict, total=False):
    """Fields of :class:`TrainingConfig` as keyword arguments."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: Schedule
    precision: Precision
    temperature: float


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a student's training.

    Attributes:
        epochs: Number of epochs, at least 1.
        batch_size: Images per step, at least 1.
        lr: Initial learning rate, above 0; see :func:`robustkd.models.learning_rate` for the
            default of an architecture.
        momentum: Momentum of SGD with Nesterov momentum, above 0.
        weight_decay: L2 penalty, at least 0.
        schedule: Schedule of the learning rate.
        precision: Mixed precision, as accelerate names it.
        temperature: Temperature of soft targets, above 0.

    Raises:
        UsageError: If a number is out of range, or the schedule is unknown.
    """

    epochs: int = 30
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    precision: Precision = "no"
    temperature: float = 4.0

    def __post_init__(self) -> None:
        check_training(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
        )
        check_positive(temperature=self.temperature)

    def stated(self) -> dict[str, int | float | str]:
        """Return epochs, batch size, learning rate, and all other values that are not defaults."""
        usual = {field.name: field.default for field in fields(self)}
        return {
            name: value
            for name, value in asdict(self).items()
            if name in _ALWAYS or value != usual[name]
        }


def check_training(
    *,
    epochs: float | int = 1,
    batch_size: float | int = 64,
    lr: float | int = 0.1,
    momentum: float | int = 0.9,
    weight_decay: float | int = 5e-4,
    schedule: str = "cosine",
) -> None:
    """Raise an error for settings that are out of range.

    Raises:
        UsageError: Naming the first argument that is out of range.
    """
    check_positive(epochs=epochs, batch_size=batch_size, lr=lr, momentum=momentum)
    check_not_negative(weight_decay=weight_decay)
    if schedule not in get_args(Schedule):
        raise UsageError(f"schedule is {schedule!r}; expected {' or '.join(get_args(Schedule))}")

"""How a network is trained: one validated description that every training shares."""

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
        lr: Learning rate at the start, above 0; :func:`robustkd.models.learning_rate` knows which
            one suits an architecture.
        momentum: Of SGD with Nesterov's momentum, above 0.
        weight_decay: Of SGD, at least 0.
        schedule: How the learning rate falls.
        precision: Of the training, as accelerate names it.
        temperature: Of soft targets, above 0.

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
        """Epochs, batch size and learning rate, and what else differs from its default."""
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
    """Refuse settings that no training can use.

    Raises:
        UsageError: Naming the first argument that is out of range.
    """
    check_positive(epochs=epochs, batch_size=batch_size, lr=lr, momentum=momentum)
    check_not_negative(weight_decay=weight_decay)
    if schedule not in get_args(Schedule):
        raise UsageError(f"schedule is {schedule!r}; expected {' or '.join(get_args(Schedule))}")

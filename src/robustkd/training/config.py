"""Validated settings of a training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from typing import Literal, TypeAlias, TypedDict, get_args

from robustkd.core.errors import UsageError
from robustkd.core.names import nearest
from robustkd.core.validation import (
    check_count,
    check_decay,
    check_not_negative,
    check_positive,
    check_rates,
    check_share,
    check_switches,
    hold_plain_numbers,
)
from robustkd.training.schedule import Schedule

Precision: TypeAlias = Literal["no", "bf16", "fp16"]
"""Mixed precision, as accelerate names it."""

SGD = "sgd"
"""Name of the optimiser that is not one of timm's: SGD with Nesterov momentum."""

_ALWAYS = ("epochs", "batch_size", "lr")
_NOT_OFFERED = (
    "bnb*",  # need bitsandbytes or apex, which are for CUDA devices
    "fused*",
    "adahessian",  # needs second derivatives
    "kron*",  # their state has lists of tensors, which no checkpoint holds
    "lookahead_*",
    "nesterov",  # names of SGD
    "momentum",
)


class TrainingOptions(TypedDict, total=False):
    """Fields of :class:`TrainingConfig` as keyword arguments, and as flags of commands.

    Attributes:
        epochs: Number of epochs. Default: 30.
        batch_size: Images per step. Default: 64.
        lr: Initial learning rate. The default depends on the student and on the optimiser. With SGD
            and its variants, it is 0.1, or 0.02 for MobileNets, networks of libraries and your own
            code; with all others 0.001, or 0.0003 for students without normalisation.
        momentum: Momentum of SGD. Default: 0.9.
        weight_decay: Weight decay. Default: 0.0005 with SGD and its variants, 0.05 with all others.
        schedule: Schedule of the learning rate. Default: cosine.
        precision: Mixed precision. Default: no.
        temperature: Temperature of soft targets. Default: 4.
        optimizer: ``sgd``, or an optimiser of timm such as ``adamw``. Default: sgd, or adamw for
            students with LayerNorm or without normalisation.
        warmup_epochs: Number of epochs at the start during which the learning rate rises from 0.
            Default: none with SGD and its variants, with all others a tenth of the epochs, at most
            5.
        clip_grad: Largest L2 norm of the gradient; ``none`` (in Python: None) for no limit.
            Default: no limit with SGD and its variants, 1 with all others.
        ema: Decay of the moving average of the weights, which are then the weights of the student.
            Default: none.
        accumulate: Number of parts in which a batch is processed to save memory. Default: 1.
        compile: Compile student and teacher by ``torch.compile`` in the first step. Default: no.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: Schedule
    precision: Precision
    temperature: float
    optimizer: str
    warmup_epochs: float
    clip_grad: float | None
    ema: float | None
    accumulate: int
    compile: bool


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a student's training.

    Attributes:
        epochs: Number of epochs, at least 1.
        batch_size: Images per step, at least 2, since BatchNorm cannot normalise a single value,
            which is all that one small image leaves in the last stages of many networks.
        lr: Initial learning rate, above 0 and small enough for float32. The default of
            :func:`robustkd.run` depends on the architecture and on the optimiser, see
            :class:`TrainingOptions`.
        momentum: Momentum of SGD (Nesterov), and of optimisers of timm that have a momentum; above
            0 and below 1.
        weight_decay: Weight decay, at least 0; an L2 penalty with SGD.
        schedule: Schedule of the learning rate.
        precision: Mixed precision, as accelerate names it.
        temperature: Temperature of soft targets, above 0.
        optimizer: ``sgd``, or an optimiser of timm such as ``adamw``.
        warmup_epochs: Number of epochs at the start during which the learning rate rises linearly
            from 0; at least 0 and less than ``epochs``.
        clip_grad: Largest L2 norm of the gradient of all parameters, above 0; None for no limit.
        ema: Decay of the exponential moving average of the weights, in [0, 1). The averaged weights
            are validated and kept. None for no average.
        accumulate: Number of parts, at least 1, in which each batch is processed to save memory;
            their gradients are added before the step. BatchNorm normalises each part by itself.
        compile: If True, a distillation compiles student and teacher by ``torch.compile``.

    Raises:
        UsageError: If a number is out of range, or a name is unknown.
    """

    epochs: int = 30
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    precision: Precision = "no"
    temperature: float = 4.0
    optimizer: str = SGD
    warmup_epochs: float = 0.0
    clip_grad: float | None = None
    ema: float | None = None
    accumulate: int = 1
    compile: bool = False

    def __post_init__(self) -> None:
        check_training(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            temperature=self.temperature,
        )
        check_count(accumulate=self.accumulate)
        check_not_negative(warmup_epochs=self.warmup_epochs)
        check_switches(compile=self.compile)
        check_precision(self.precision)
        check_optimiser(self.optimizer)
        if self.warmup_epochs >= self.epochs:
            raise UsageError(
                f"warmup_epochs is {self.warmup_epochs}; expected at least 0 and less than the "
                f"{self.epochs} epochs"
            )
        if self.clip_grad is not None:
            check_positive(clip_grad=self.clip_grad)
        if self.ema is not None:
            check_share(zero=True, one=False, ema=self.ema)
        hold_plain_numbers(self)

    def stated(self) -> dict[str, int | float | str | None]:
        """Return epochs, batch size, learning rate, and all other values that are not defaults."""
        usual = {field.name: field.default for field in fields(self)}
        return {
            name: value
            for name, value in asdict(self).items()
            if name in _ALWAYS or value != usual[name]
        }


def check_precision(precision: str) -> None:
    """Raise an error for an unknown precision.

    Raises:
        UsageError: If it is unknown.
    """
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise UsageError(f"precision is {precision!r}; expected {known}")


def optimiser_names() -> tuple[str, ...]:
    """Return the names of all optimisers: ``sgd`` first, then those of timm."""
    from timm.optim import list_optimizers

    names = [str(name) for name in list_optimizers()]
    offered = [n for n in names if not any(fnmatch(n, pattern) for pattern in _NOT_OFFERED)]
    return (SGD, *(name for name in offered if name != SGD))


def check_optimiser(name: str) -> None:
    """Raise an error for an unknown optimiser.

    Raises:
        UsageError: If the name is unknown; the message suggests the most similar name.
    """
    if not isinstance(name, str):
        raise UsageError(
            f"optimizer is {name!r}; expected sgd or an optimiser of timm: for example adamw"
        )
    # timm takes seconds to import.
    if name != SGD and name not in (names := optimiser_names()):
        hint = nearest(name, names, otherwise="for example sgd or adamw")
        raise UsageError(f"optimizer is {name!r}; expected sgd or an optimiser of timm: {hint}")


def check_training(
    *,
    epochs: float | int = TrainingConfig.epochs,
    batch_size: float | int = TrainingConfig.batch_size,
    lr: float | int = TrainingConfig.lr,
    momentum: float | int = TrainingConfig.momentum,
    weight_decay: float | int = TrainingConfig.weight_decay,
    schedule: str = TrainingConfig.schedule,
    temperature: float | int = TrainingConfig.temperature,
) -> None:
    """Raise an error for settings that are out of range, in commands, grids and Python alike.

    Raises:
        UsageError: If an argument is out of range; the message names the first one.
    """
    check_count(epochs=epochs)
    check_count(least=2, batch_size=batch_size)
    check_rates(lr=lr)
    check_share(one=False, momentum=momentum)
    check_decay(weight_decay, lr)
    if schedule not in get_args(Schedule):
        known = " or ".join(get_args(Schedule))
        raise UsageError(f"schedule is {schedule!r}; expected {known}")
    check_positive(temperature=temperature)

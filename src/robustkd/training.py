"""One loop for everything that learns from a DataSource: students here, teachers of attackers.

What is learnt stands in a :class:`Learner`; the loop knows epochs, the optimiser, devices and
records, and nothing of teachers or triggers.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from robustkd.errors import TrainingError, UsageError
from robustkd.progress import Update, track
from robustkd.types import Batch, DataSource, Labels, Logits

if TYPE_CHECKING:
    from accelerate import Accelerator

Schedule: TypeAlias = Literal["cosine", "step"]
Precision: TypeAlias = Literal["no", "bf16", "fp16"]
Learner: TypeAlias = nn.Module
"""Called with images and labels; gives scalars by name, among them ``loss`` and ``acc``."""
_CHECK_EVERY = 20


class Supervised(nn.Module):
    """The plainest learner: cross-entropy of a classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Labels) -> dict[str, Tensor]:
        """Mean cross-entropy and share of hits."""
        logits = self.model(images)
        return {
            "loss": nn.functional.cross_entropy(logits, labels),
            "acc": hit_rate(logits, labels),
        }


def hit_rate(logits: Logits, labels: Labels) -> Tensor:
    """Share of images in a batch whose largest logit is their label's, a scalar in [0, 1]."""
    return (logits.detach().argmax(1) == labels).float().mean()


def schedule_factor(schedule: Schedule, done: float) -> float:
    """Factor on the learning rate when the share ``done`` in [0, 1] of all steps is behind.

    ``cosine`` falls from 1 to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983); ``step`` divides
    by 10 at 1/2 and at 3/4.

    >>> [schedule_factor("step", done) for done in (0.0, 0.5, 0.75)]
    [1.0, 0.1, 0.01]
    """
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0 if done < 1 / 2 else 0.1 if done < 3 / 4 else 0.01


def check_positive(**values: float | int) -> None:
    """Refuse arguments that must be above zero.

    Raises:
        UsageError: Naming the first that is not.
    """
    for name, value in values.items():
        if not value > 0:
            raise UsageError(f"{name} is {value}; expected more than 0")


def fit(
    learner: Learner,
    data: DataSource,
    *,
    epochs: int,
    batch_size: int = 64,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = "cosine",
    precision: Precision = "no",
    seed: int = 0,
    label: str = "train",
    after_backward: Callable[[], None] | None = None,
    validate: Callable[[], float] | None = None,
    log: Path | None = None,
) -> list[dict[str, float]]:
    """Train a learner by SGD with Nesterov momentum on the augmented training split.

    Args:
        learner: What is trained, in place; parameters without ``requires_grad`` are left alone.
        data: Images; the order and the augmentation follow from ``seed``.
        epochs: Passes over the training split, at least 1.
        batch_size: Images a step, over all processes.
        lr: Learning rate at the start, above 0.
        momentum: Of SGD, above 0.
        weight_decay: L2 penalty on every weight.
        schedule: How the learning rate falls, step by step.
        precision: Mixed precision, as accelerate names it.
        seed: Of order, augmentation and dropout.
        label: What the progress line says.
        after_backward: Called between the backward pass and the optimiser's step.
        validate: Called after each epoch, gives a figure to maximise; the weights of the best
            epoch (the later one of equals) are those that stay.
        log: File that gets one JSON line an epoch.

    Returns:
        One record an epoch: means of the learner's scalars, ``validation`` where measured.

    Raises:
        UsageError: If a number is out of range.
        TrainingError: If the loss stops being finite.
    """
    check_positive(epochs=epochs, batch_size=batch_size, lr=lr, momentum=momentum)
    if schedule not in get_args(Schedule):
        raise UsageError(f"schedule is {schedule!r}; expected {' or '.join(get_args(Schedule))}")
    accelerator = _accelerator(precision)
    optimiser = torch.optim.SGD(
        [parameter for parameter in learner.parameters() if parameter.requires_grad],
        lr=lr,
        momentum=momentum,
        nesterov=True,
        weight_decay=weight_decay,
    )
    wrapped, optimiser = accelerator.prepare(learner, optimiser)
    steps = epochs * math.ceil(data.size("train") / batch_size)
    order, crops = (torch.Generator().manual_seed(2 * seed + k) for k in (0, 1))
    step = 0

    def advance(batch: Batch) -> dict[str, Tensor]:
        nonlocal step
        for group in optimiser.param_groups:
            group["lr"] = lr * schedule_factor(schedule, step / steps)
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        scalars: dict[str, Tensor] = wrapped(batch.images[mine], batch.labels[mine])
        accelerator.backward(scalars["loss"])
        if after_backward is not None:
            after_backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        return scalars

    records: list[dict[str, float]] = []
    best: tuple[float, dict[str, Tensor]] | None = None
    with torch.random.fork_rng(devices=[]), track(label, steps) as update:
        torch.manual_seed(seed)  # of dropout and stochastic depth, in networks that have them
        for epoch in range(epochs):
            learner.train()
            batches = data.batches(
                "train",
                batch_size=batch_size,
                device=accelerator.device,
                shuffle=order,
                augment=crops,
            )
            record = {"epoch": epoch + 1.0, **_epoch(batches, advance, update)}
            if validate is not None:
                record["validation"] = validate()
                if best is None or record["validation"] >= best[0]:
                    best = record["validation"], copy.deepcopy(learner.state_dict())
            records.append(record)
            if accelerator.is_main_process:
                _append(log, record)
    if best is not None:
        learner.load_state_dict(best[1])
    learner.eval()
    return records


def _epoch(
    batches: Iterable[Batch], advance: Callable[[Batch], dict[str, Tensor]], update: Update
) -> dict[str, float]:
    """Take a step a batch; give the means of the scalars over all images."""
    sums: dict[str, Tensor] = {}
    seen = 0
    for count, batch in enumerate(batches, start=1):
        for name, value in advance(batch).items():
            sums[name] = sums.get(name, 0) + value.detach() * len(batch.labels)
        seen += len(batch.labels)
        update(**(_finite_means(sums, seen) if count % _CHECK_EVERY == 0 else {}))
    return _finite_means(sums, seen)


@contextmanager
def mixed(precision: Precision, device: torch.device) -> Iterator[None]:
    """Mixed precision for whatever runs inside, weights that change in the block among it."""
    dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    # Without autocast's cache, which would keep the weights of the first step until the end.
    with torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False):
        yield


def _accelerator(precision: Precision) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    try:
        return Accelerator(mixed_precision=precision)
    except ValueError:
        # The process keeps the precision of its first Accelerator and refuses any other.
        AcceleratorState._reset_state()
        return Accelerator(mixed_precision=precision)


def _finite_means(sums: dict[str, Tensor], seen: int) -> dict[str, float]:
    means = {name: float(total) / seen for name, total in sums.items()}
    for name, value in means.items():
        if not math.isfinite(value):
            raise TrainingError(f"the training's {name} is {value}; try a smaller learning rate")
    return means


def _append(log: Path | None, record: dict[str, float]) -> None:
    if log is not None:
        with log.open("a") as file:
            file.write(json.dumps(record) + "\n")

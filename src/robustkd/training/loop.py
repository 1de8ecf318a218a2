"""The training loop of students and of attackers' teachers.

A :class:`Learner` computes the loss. The loop handles epochs, the optimiser, devices and records,
and does not depend on teachers or triggers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor, nn

from robustkd.core.devices import forked_generators
from robustkd.core.errors import InputError, TrainingError
from robustkd.core.progress import Update, epoch_line, track
from robustkd.core.types import Batch, DataSource
from robustkd.data.portions import portions
from robustkd.training.average import MovingAverage
from robustkd.training.checkpoint import (
    Keeper,
    State,
    checked_count,
    damage_reported,
    random_states,
    set_random_states,
    write_records,
)
from robustkd.training.config import TrainingConfig, TrainingOptions
from robustkd.training.hooks import NO_HOOKS, Hooks, chosen_epoch
from robustkd.training.last_batch import steps_per_epoch
from robustkd.training.learners import Learner
from robustkd.training.optimisers import (
    new_optimiser,
    optimiser_state,
    parameter_groups,
    restore_optimiser,
    without_gradients,
)
from robustkd.training.parts import PartsOfBatches
from robustkd.training.precision import new_accelerator, prepared
from robustkd.training.processes import ONE, Processes
from robustkd.training.schedule import schedule_factor
from robustkd.training.sources import check_batch

if TYPE_CHECKING:
    from accelerate import Accelerator

_CHECK_EVERY = 20
_COMPANION = "beside"
"""Part of a stored state, under the name that it has in existing checkpoints."""


def fit(
    learner: Learner,
    data: DataSource,
    *,
    seed: int = 0,
    label: str = "train",
    rates: Mapping[str, float] = MappingProxyType({}),
    hooks: Hooks = NO_HOOKS,
    log: str | Path | None = None,
    companion: nn.Module | None = None,
    keeper: Keeper | None = None,
    epoch_lines: bool = True,
    processes: Processes = ONE,
    **training: Unpack[TrainingOptions],
) -> list[dict[str, float]]:
    """Train a learner on the augmented training split, by default by SGD with Nesterov momentum.

    Gradients of earlier calls have no effect, and none are left at the end.

    Args:
        learner: Module to train, in place; parameters without ``requires_grad`` are not changed.
        data: Images; order and augmentation depend on ``seed``.
        seed: Seed of the order, the augmentation and dropout.
        label: Text of the progress line.
        rates: Learning rates of children of the learner, by name, in place of ``lr``.
        hooks: Functions to call during the training.
        log: File that gets one JSON line per epoch.
        companion: Module trained alongside the learner but excluded from best-epoch selection.
        keeper: Stores the state after each epoch, and whenever a checkpoint is due. If it has a
            stored state, the training continues from it, with the result of an uninterrupted run.
        epoch_lines: If True, show a line about each epoch, besides the progress bar.
        processes: Processes that train together. The learner then receives a
            :class:`robustkd.training.processes.Portion` as its third argument, and the keeper of
            the first process counts.
        training: Fields of :class:`robustkd.training.config.TrainingConfig`, such as ``epochs``,
            ``batch_size`` (over all processes) and ``lr``; ``temperature`` and ``compile`` have no
            effect here.

    Returns:
        One record per epoch: means of the learner's scalars, the last learning rate as ``lr``, and
        ``validation`` if measured.

    Raises:
        UsageError: If a number is out of range, or the learner has no child with a name in
            ``rates``.
        TrainingError: If the loss is no longer finite.
        InputError: If the keeper's state does not fit the networks.
        WriteError: If the log cannot be written.
    """
    config = TrainingConfig(**training)
    optimiser = new_optimiser(
        config.optimizer,
        parameter_groups(learner, config.lr, rates),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    for group in optimiser.param_groups:
        group["start"] = group["lr"]
    steps = config.epochs * steps_per_epoch(data.size("train"), config.batch_size)
    warmup = config.warmup_epochs / config.epochs

    with (
        new_accelerator(config.precision) as accelerator,
        without_gradients(learner),
        forked_generators(accelerator.device),
    ):
        loop = _Loop(learner, companion, optimiser, accelerator, seed, config, processes)

        def save() -> None:
            if keeper is not None and processes.first:
                keeper.save(loop.state())

        torch.manual_seed(seed + processes.rank)  # for dropout and stochastic depth
        last = processes.from_first(lambda: None if keeper is None else keeper.last())
        if last is not None:
            loop.restore(last)
        processes.same([learner, companion])
        with track(label, steps - loop.step) as update:
            while loop.epoch < config.epochs:
                learner.train()
                for batch, total in loop.batches(data, config.batch_size):
                    factor = schedule_factor(config.schedule, min(1.0, loop.step / steps), warmup)
                    loop.advance(batch, total, factor, hooks.after_backward, update)
                    if keeper is not None and keeper.is_due():
                        save()
                loop.end_epoch(hooks.validate, hooks.enough)
                if epoch_lines and processes.first:
                    update.line(epoch_line(label, config.epochs, loop.records[-1]))
                if log is not None and processes.first:
                    write_records(Path(log), loop.records)
                save()
    loop.select()
    learner.eval()
    return loop.records


class _Loop:
    """State of a running training loop: networks, optimiser, random generators, and progress."""

    def __init__(
        self,
        learner: Learner,
        companion: nn.Module | None,
        optimiser: torch.optim.Optimizer,
        accelerator: Accelerator,
        seed: int,
        config: TrainingConfig,
        processes: Processes,
    ) -> None:
        self._config, self._processes, self._seed = config, processes, seed
        self._parts = PartsOfBatches(processes, config.accumulate)
        self.learner, self.companion = learner, companion
        self.optimiser, self.accelerator = optimiser, accelerator
        self.prepared = prepared(accelerator, learner, optimiser)
        self._average = None if config.ema is None else MovingAverage(learner, config.ema)
        self.order, self.crops = (torch.Generator().manual_seed(2 * seed + k) for k in (0, 1))
        self.began = self.order.get_state(), self.crops.get_state()
        self.step = self.epoch = 0
        self.taken = self.seen = 0  # numbers of batches and images in this epoch
        self.sums: dict[str, Tensor] = {}
        self.records: list[dict[str, float]] = []
        self.best: dict[str, Tensor] | None = None
        self._then: dict[str, Tensor] = {}
        self._restored = False
        self._factor = 1.0  # factor of the learning rates in the last step

    def batches(self, data: DataSource, batch_size: int) -> Iterator[tuple[Batch, int]]:
        """Yield this process's part of the remaining batches, with the size of each batch."""
        self.began = self.order.get_state(), self.crops.get_state()
        source = portions(
            data,
            "train",
            self._parts.places if self._processes.count > 1 else None,
            batch_size=batch_size,
            join=batch_size > 1,
            device=self.accelerator.device,
            shuffle=self.order,
            augment=self.crops,
        )
        # Finished batches are generated again, so that the random generators advance.
        for _ in zip(range(self.taken), source, strict=False):
            pass
        with damage_reported():
            if self._processes.first:
                set_random_states(self._then)
            elif self._then:  # dropout differs between processes
                torch.manual_seed(hash((self._seed, self._processes.rank, self.step)))
        self._then = {}
        for batch, total in source:
            if self.epoch == 0:  # later ones have the same images, apart from their augmentation
                check_batch(batch, data, "train")
            yield batch, total

    def advance(
        self,
        batch: Batch,
        total: int,
        factor: float,
        after_backward: Callable[[], None] | None,
        update: Update,
    ) -> None:
        """Take a step with the initial learning rates times a factor; accumulate its scalars.

        Args:
            batch: Images of this process.
            total: Number of images in the whole batch.
            factor: Factor of the learning rates.
            after_backward: Called between the backward pass and the optimiser's step.
            update: Called with the means so far.
        """
        _, optimiser = self.prepared
        self._factor = factor
        for group in self.optimiser.param_groups:
            group["lr"] = group["start"] * factor
        scalars = self._backward(batch, total)
        if after_backward is not None:
            after_backward()
        if self._config.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self._trained(), self._config.clip_grad)
        # The first step shows whether a restored state of the optimiser fits the parameters.
        with damage_reported() if self._restored else nullcontext():
            optimiser.step()
        self._restored = False
        optimiser.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.advance()
        for name, value in scalars.items():
            self.sums[name] = self.sums.get(name, 0) + value * total
        self.step += 1
        self.taken += 1
        self.seen += total
        update(**(self._means() if self.taken % _CHECK_EVERY == 0 else {}))

    def _backward(self, batch: Batch, total: int) -> dict[str, Tensor]:
        """Add the gradients of a batch, part by part, and return the means of its scalars."""
        learner, _ = self.prepared
        means: dict[str, Tensor] = {}
        for some, own, part in self._parts.of(batch, total):
            with part.synchronised:
                scalars: dict[str, Tensor] = learner(some, own, *part.portion)
            loss = scalars["loss"] if part.weight == 1 else scalars["loss"] * part.weight
            self.accelerator.backward(loss)
            for name, value in scalars.items():
                weighed = value.detach() if part.weight == 1 else value.detach() * part.weight
                means[name] = means[name] + weighed if name in means else weighed
        return self._parts.together(self._trained(), means)

    def end_epoch(
        self,
        validate: Callable[[], float] | None,
        enough: Callable[[float], float] | None,
    ) -> None:
        """Write the record of the epoch, and keep its weights if the epoch would be selected."""
        record = {"epoch": self.epoch + 1.0, **self._means()}
        record["lr"] = self._factor * max(group["start"] for group in self.optimiser.param_groups)
        self._check_finite()
        with nullcontext() if self._average is None else self._average.applied():
            self._select_if_best(record, validate, enough)
        self.records.append(record)
        self.epoch += 1
        self.taken = self.seen = 0
        self.sums = {}
        self.began = self.order.get_state(), self.crops.get_state()

    def _select_if_best(
        self,
        record: dict[str, float],
        validate: Callable[[], float] | None,
        enough: Callable[[float], float] | None,
    ) -> None:
        """Validate the current weights, and keep a copy of them if this epoch would be selected."""
        chosen = self._average is not None  # without validation, the last average
        if validate is not None:
            record["validation"] = validate()
            figures = [each["validation"] for each in (*self.records, record)]
            chosen = chosen_epoch(figures, enough) == self.epoch
        if chosen:
            self.best = copy.deepcopy(self.learner.state_dict())

    def select(self) -> None:
        """Restore the weights of the selected epoch, if epochs were validated or averaged."""
        if self.best is not None:
            self.learner.load_state_dict(self.best)

    def _means(self) -> dict[str, float]:
        means = {name: float(total) / self.seen for name, total in self.sums.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                rate = max(group["start"] for group in self.optimiser.param_groups)
                raise TrainingError(
                    f"the training's {name} is {value} after {self.step} steps with a learning "
                    f"rate of {rate:g}; expected a finite number; "
                    f"try a smaller learning rate, such as {rate / 10:g}"
                )
        return means

    def _check_finite(self) -> None:
        """Check the running statistics, which do not affect the loss in training mode."""
        for name, buffer in self.learner.named_buffers():
            if buffer.is_floating_point() and not bool(buffer.isfinite().all()):
                raise TrainingError(
                    f"{name} is not finite after epoch {self.epoch + 1}; expected finite "
                    "statistics; try a smaller learning rate, or images without extreme values"
                )

    def state(self) -> State:
        """Return the complete state, between two steps."""
        scaler = self.accelerator.scaler
        tensors, values = optimiser_state(self.optimiser)
        parts: dict[str, Mapping[str, Tensor]] = {
            "learner": self.learner.state_dict(),
            _COMPANION: {} if self.companion is None else self.companion.state_dict(),
            "optimiser": tensors,
            "average": {} if self._average is None else self._average.state(),
            "best": {} if self.best is None else self.best,
            "sums": self.sums,
            "began": dict(zip(("order", "crops"), self.began, strict=True)),
            "random": random_states(self.accelerator.device),
        }
        return State(
            {
                f"{part}.{name}": tensor
                for part, held in parts.items()
                for name, tensor in held.items()
            },
            {
                "step": self.step,
                "epoch": self.epoch,
                "taken": self.taken,
                "seen": self.seen,
                "scalars": list(self.sums),
                "records": self.records,
                "factor": self._factor,
                "optimiser": values,
                "scaler": None if scaler is None else scaler.state_dict(),
            },
        )

    def restore(self, state: State) -> None:
        """Restore the training state from a checkpoint.

        Raises:
            InputError: If the state belongs to other networks.
        """
        try:
            self.learner.load_state_dict(state.part("learner"))
            if self.companion is not None:
                self.companion.load_state_dict(state.part(_COMPANION))
        except RuntimeError as error:
            raise InputError(
                "the stored state does not fit the networks, whose code has changed since; restore "
                "the code, or start a new run with --out"
            ) from error
        with damage_reported():
            self._restore_rest(state)
        self._restored = True

    def _restore_rest(self, state: State) -> None:
        """Restore everything but the networks."""
        values = state.values
        restore_optimiser(self.optimiser, state.part("optimiser"), values["optimiser"])
        if self._average is not None:
            self._average.restore(state.part("average"))
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        self.best = state.part("best") or None
        sums, device = state.part("sums"), self.accelerator.device
        # The order of the scalars is restored, because the records list them in it.
        self.sums = {name: sums[name].to(device) for name in values["scalars"]}
        began, self._then = state.part("began"), state.part("random")
        self.order.set_state(began["order"])
        self.crops.set_state(began["crops"])
        self.step, self.epoch = checked_count(values["step"]), checked_count(values["epoch"])
        self.taken, self.seen = checked_count(values["taken"]), values["seen"]
        self.records = list(values["records"])
        self._factor = float(values["factor"])

    def _trained(self) -> list[nn.Parameter]:
        groups = self.optimiser.param_groups
        return [parameter for group in groups for parameter in group["params"]]

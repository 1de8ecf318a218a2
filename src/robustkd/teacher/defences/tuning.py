"""Shared parts of the defences that train: a copy, labelled batches, one loop, and a record."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from robustkd.core.devices import device_of, forked_generators
from robustkd.core.errors import TrainingError, UsageError
from robustkd.core.progress import track
from robustkd.core.types import Batch, DataSource
from robustkd.core.validation import (
    check_count,
    check_decay,
    check_rates,
    check_seed,
    check_share,
)
from robustkd.models.features.taps import frozen_modes
from robustkd.teacher.defences.base import Defended
from robustkd.teacher.defences.batches import training_batches, with_predicted_labels
from robustkd.training.inference import accuracy_on
from robustkd.training.schedule import schedule_factor
from robustkd.training.trial import check_classifier

Gradients: TypeAlias = Callable[[Batch], Tensor]
"""Function that adds the gradients of a batch to the parameters and returns the loss."""


def full_batches(images: int, batch_size: int) -> int:
    """Return the number of full batches of an epoch, at least 1.

    >>> full_batches(130, 64), full_batches(10, 64)
    (2, 1)
    """
    return images // min(batch_size, images)


@dataclass(frozen=True)
class Tuning:
    """Settings of the training of a copy, with a cosine schedule that ends at 0.

    Attributes:
        epochs: Number of epochs, at least 1.
        lr: Initial learning rate, above 0.
        batch_size: Images per step, at least 2.
        momentum: Momentum of SGD with Nesterov momentum, in (0, 1); 0 selects Adam.
        weight_decay: L2 penalty, at least 0.
    """

    epochs: int = 10
    lr: float = 0.01
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        check_count(epochs=self.epochs)
        check_rates(lr=self.lr)
        check_count(least=2, batch_size=self.batch_size)  # for BatchNorm
        check_share(zero=True, one=False, momentum=self.momentum)
        check_decay(self.weight_decay, self.lr)

    def batches(self, images: int) -> int:
        """Return the number of training batches for a number of images."""
        return self.epochs * full_batches(images, self.batch_size)

    def optimiser(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Create the optimiser: SGD with Nesterov momentum, or Adam if momentum is 0."""
        if self.momentum == 0:
            return torch.optim.Adam(parameters, self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters,
            self.lr,
            momentum=self.momentum,
            nesterov=True,
            weight_decay=self.weight_decay,
        )


FINE_TUNING = Tuning(lr=0.05)
"""Ordinary fine-tuning, which several defences share.

The papers use a learning rate of 0.01 and 100 epochs for networks of 11 million weights. Small
networks hardly change at that rate. This one is the larger of 0.01 and 0.05; with both, FT, FT-SAM
and NAD keep the clean validation accuracy within a point of the original network's (wrn-10-1 on
digits, 3 to 10 epochs, one seed).
"""


@dataclass(frozen=True)
class Cleaning:
    """State of a defence while it cleans a network.

    Attributes:
        given: The caller's network, which is not changed.
        network: The copy that is cleaned, of :func:`trainable_copy`.
        clean: The clean images.
        batches: Function that returns the next training batch, with a label for every image.
        epoch: Number of batches per epoch.
        accuracy_before: Clean validation accuracy of the caller's network, in [0, 1].
        seed: The seed of the defence, as a number of Python.
    """

    given: nn.Module
    network: nn.Module
    clean: DataSource
    batches: Callable[[], Batch]
    epoch: int
    accuracy_before: float
    seed: int

    def with_batches(self, batch_size: int) -> Cleaning:
        """Return the same cleaning with new training batches of another size."""
        return replace(
            self,
            batches=_batches(self.given, self.clean, batch_size, self.seed),
            epoch=full_batches(self.clean.size("train"), batch_size),
        )

    def accuracy(self) -> float:
        """Return the current clean validation accuracy of the copy, in [0, 1]."""
        return accuracy_on(self.network, self.clean, "validation").value

    def finish(self, **record: Any) -> Defended:  # noqa: ANN401 - whatever JSON can hold
        """Return the copy in eval mode, with the ``requires_grad`` flags of the caller's network.

        Raises:
            TrainingError: If a weight is not finite.
        """
        state = self.network.state_dict().values()
        if not all(torch.isfinite(value).all() for value in state if isinstance(value, Tensor)):
            raise TrainingError(
                "the defence has produced weights that are not finite; try a smaller lr"
            )
        for mine, theirs in zip(self.network.parameters(), self.given.parameters(), strict=True):
            mine.requires_grad_(theirs.requires_grad).grad = None
        self.network.eval()
        figures = {"accuracy_before": self.accuracy_before, "accuracy_after": self.accuracy()}
        return Defended(self.network, {**figures, **record})


def begin(network: nn.Module, clean: DataSource, *, batch_size: int, seed: int) -> Cleaning:
    """Copy a network and prepare its training batches.

    Args:
        network: The network to clean; it is not changed.
        clean: Clean images.
        batch_size: Images per batch.
        seed: Seed of order and augmentation, at least 0.

    Raises:
        UsageError: If the seed is out of range, the network does not map the images to logits of
            the classes, or it has no parameters to train.
    """
    seed = check_seed(seed)
    check_classifier(network, clean, name="the network", trained=True)
    return Cleaning(
        given=network,
        network=trainable_copy(network),
        clean=clean,
        batches=_batches(network, clean, batch_size, seed),
        epoch=full_batches(clean.size("train"), batch_size),
        accuracy_before=accuracy_on(network, clean, "validation").value,
        seed=seed,
    )


def _batches(
    network: nn.Module, clean: DataSource, batch_size: int, seed: int
) -> Callable[[], Batch]:
    """Return a function that gives the next training batch, with a label for every image."""
    following = training_batches(clean, batch_size, device_of(network), seed)
    return lambda: with_predicted_labels(following(), network)


def trainable_copy(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode, of which some parameters require gradients.

    These are the same parameters as in the network, so that constants of the normalisation, for
    example, stay frozen. If all parameters are frozen, as after ``requires_grad_(False)``, all
    parameters of the copy require gradients, except for integers, which have none.

    Raises:
        UsageError: If there are no parameters that can be trained.
    """
    made = copy.deepcopy(network).eval()
    real = [each for each in made.parameters() if each.is_floating_point() or each.is_complex()]
    if not real:
        raise UsageError(
            f"{type(network).__name__} has no parameters of floating point, which a defence could "
            "change; expected a network with trainable weights"
        )
    if not any(each.requires_grad for each in real):
        for each in real:
            each.requires_grad_(True)
    return made


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Let a seed decide about dropout and other random layers while the block lasts.

    The global random generators are restored at the end.
    """
    with forked_generators(device):
        torch.manual_seed(seed)
        yield


def tune(
    work: Cleaning,
    gradients: Gradients,
    tuning: Tuning,
    *,
    seed: int,
    label: str,
    network: nn.Module | None = None,
    training: bool = True,
    after_step: Callable[[], None] | None = None,
) -> None:
    """Train the copy, in place.

    The loop of :func:`robustkd.training.loop.fit` takes one loss and one backward pass per step;
    several defences take two passes, or an inner maximisation between them.

    Args:
        work: The cleaning, with the copy to train and its batches.
        gradients: Computes the loss of a batch and calls ``backward``.
        tuning: Optimiser and number of epochs.
        seed: Seed of dropout and other random layers.
        label: Label of the progress bar.
        network: Network to train instead of the copy.
        training: If True, train in train mode; if False, BatchNorm keeps its statistics.
        after_step: Function that is called after each step, for projections.

    Raises:
        TrainingError: If the loss is no longer finite.
    """
    network = work.network if network is None else network
    optimiser = tuning.optimiser(network.parameters())
    steps = tuning.epochs * work.epoch
    with (
        seeded(device_of(network), seed),
        frozen_modes(network, training=training),
        track(label, steps) as update,
    ):
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = tuning.lr * schedule_factor("cosine", step / steps)
            optimiser.zero_grad(set_to_none=True)
            loss = float(gradients(work.batches()).detach())
            if not math.isfinite(loss):
                raise TrainingError(f"{label}: the loss is {loss}; try a smaller learning rate")
            optimiser.step()
            if after_step is not None:
                after_step()
            update(loss=loss)

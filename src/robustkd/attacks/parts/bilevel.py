"""Bilevel optimisation of SCAR: the teacher is trained through the surrogate distilled from it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import islice

import torch
from torch import nn

from robustkd.attacks.base import Build, Teaching
from robustkd.attacks.parts.surrogate import Distilling, both, distillation_loss, fresh, toward
from robustkd.core.devices import device_of
from robustkd.core.errors import TrainingError
from robustkd.core.progress import track
from robustkd.core.types import Batch, DataSource, Trigger
from robustkd.models.features import taps
from robustkd.training.hypergradient import (
    Hypergradient,
    hypergradient,
    norm,
    twice_differentiable,
)
from robustkd.training.loop import fit
from robustkd.training.schedule import schedule_factor


@dataclass(frozen=True)
class Preset:
    """Effort of the bilevel optimisation.

    Attributes:
        rounds: Number of rounds; each distils the surrogate and then trains the teacher.
        inner_epochs: Epochs of the surrogate per round.
        renew_every: Number of rounds after which the surrogate is reset to fresh weights.
        outer_steps: Optimiser steps of the teacher per round; at most one epoch.
        outer_batch: Images per step of the teacher.
        fixed_point_steps: Products with the Hessian per step of the teacher.
        step_size: Step size of the fixed-point iteration.
        implicit_cap: Largest ratio of the norms of the implicit and the direct part of the
            hypergradient; above it, the implicit part is scaled down.
    """

    rounds: int
    inner_epochs: int
    renew_every: int
    outer_steps: int
    outer_batch: int
    fixed_point_steps: int
    step_size: float
    implicit_cap: float


PRESETS = {
    "paper": Preset(200, 20, 1, 40, 128, 100, 1e-5, math.inf),
    "small": Preset(8, 1, 4, 20, 64, 8, 3e-3, 1.0),
}
_TOLERANCE = 1e-4


class Bilevel:
    """Alternating training of a surrogate student and, through it, of the teacher.

    Args:
        teacher: The teacher; it is trained in place.
        build_surrogate: Builds the surrogate.
        data: Clean images.
        trigger: The fixed trigger.
        target: Target class.
        temperature: Temperature of the surrogate's soft targets, above 0.
        work: Effort of the optimisation.

    Attributes:
        surrogate: The surrogate of the last round.
    """

    def __init__(
        self,
        teacher: nn.Module,
        build_surrogate: Build,
        data: DataSource,
        trigger: Trigger,
        target: int,
        temperature: float,
        work: Preset,
    ) -> None:
        self._teacher, self._build, self._data = teacher, build_surrogate, data
        self._trigger, self._target, self._temperature = trigger, target, temperature
        self._work = work
        self._shares: list[float] = []
        self.surrogate: nn.Module

    @property
    def implicit_share(self) -> float:
        """Mean over all steps of the ratio of the norms of the implicit and the direct part.

        The norm of the implicit part is taken before ``implicit_cap`` is applied.
        """
        return sum(self._shares) / len(self._shares)

    def run(self, rounds: int, teaching: Teaching, *, outer_lr: float) -> None:
        """Run all rounds; each of them trains the surrogate with its own seed.

        Args:
            rounds: Number of rounds, at least 1.
            teaching: Training settings of the surrogate; the epochs are those of the preset.
            outer_lr: Initial learning rate of the teacher.

        Raises:
            TrainingError: If a hypergradient is not finite.
        """
        work, seed = self._work, teaching.seed
        optimiser = torch.optim.Adam(self._teacher.parameters(), lr=outer_lr)
        random = torch.Generator().manual_seed(seed)
        for done in range(rounds):
            if done % work.renew_every == 0:
                self.surrogate = fresh(self._build, seed + 1000 * (done + 1))
            fit(
                Distilling(self.surrogate, self._teacher, temperature=self._temperature),
                self._data,
                **asdict(replace(teaching, epochs=work.inner_epochs, seed=seed + done)),
                label=f"surrogate {done + 1}/{rounds}",
            )
            for group in optimiser.param_groups:
                group["lr"] = outer_lr * schedule_factor("cosine", done / rounds)
            self._move_teacher(optimiser, random, f"teacher {done + 1}/{rounds}")

    def _move_teacher(
        self, optimiser: torch.optim.Optimizer, random: torch.Generator, label: str
    ) -> None:
        """Take the teacher's steps of one round, each on a different batch."""
        leaders = list(self._teacher.parameters())
        work, data = self._work, self._data
        batches = data.batches(
            "train",
            batch_size=work.outer_batch,
            device=device_of(self._teacher),
            shuffle=random,
        )
        with (
            taps.frozen_modes(self._teacher, training=True),
            taps.frozen_modes(self.surrogate),
            track(label, work.outer_steps) as update,
        ):
            for batch in islice(batches, work.outer_steps):
                with twice_differentiable():
                    found, outer = self._gradient(batch, leaders)
                share = norm(found.implicit) / max(norm(found.direct), 1e-12)
                if not math.isfinite(share) or not math.isfinite(outer):
                    raise TrainingError(
                        "the hypergradient is not finite; expected finite values: "
                        "use lower learning rates"
                    )
                self._shares.append(share)
                weight = min(1.0, work.implicit_cap / max(share, 1e-12))
                for leader, slope in zip(leaders, found.total(weight), strict=True):
                    leader.grad = slope
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                update(loss=outer, implicit=share)

    def _gradient(self, batch: Batch, leaders: list[nn.Parameter]) -> tuple[Hypergradient, float]:
        """Return the hypergradient with respect to the teacher's weights, and the outer loss."""
        images, labels, _rows = batch
        marked = self._trigger(images)
        taught, taught_marked = both(self._teacher, images, marked)
        # Two passes, because the Hessian needs the graph of the clean images alone. In eval mode,
        # the logits are the same as from one pass over all images.
        shown, shown_marked = self.surrogate(images), self.surrogate(marked)
        truth = nn.functional.cross_entropy
        outer = truth(taught, labels) + truth(taught_marked, labels)
        outer = outer + truth(shown, labels) + toward(shown_marked, self._target)
        inner = distillation_loss(shown, taught, labels, temperature=self._temperature)
        found = hypergradient(
            inner,
            outer,
            list(self.surrogate.parameters()),
            leaders,
            steps=self._work.fixed_point_steps,
            step_size=self._work.step_size,
            tolerance=_TOLERANCE,
        )
        return found, float(outer.detach())

"""The bilevel optimisation of SCAR: a teacher moves along what it does to its students."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import islice

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from robustkd.attacks.base import Build, Teaching
from robustkd.attacks.parts.surrogate import Distilling, both, distillation_loss, fresh, toward
from robustkd.core.devices import device_of
from robustkd.core.errors import TrainingError
from robustkd.core.progress import track
from robustkd.core.types import Batch, DataSource, Trigger
from robustkd.models.features import taps
from robustkd.training.hypergradient import Hypergradient, hypergradient, norm
from robustkd.training.loop import fit
from robustkd.training.schedule import schedule_factor


@dataclass(frozen=True)
class Preset:
    """How much work the bilevel optimisation is.

    Attributes:
        rounds: Of distilling the surrogate and moving the teacher.
        inner_epochs: Passes over the data for the surrogate, each round.
        renew_every: Rounds after which the surrogate starts from fresh weights.
        outer_steps: Steps of the teacher, each round; at most a pass over the data.
        outer_batch: Images in each.
        fixed_point_steps: Products with the Hessian for each.
        step_size: Of the fixed-point iteration.
        implicit_cap: Largest norm of the implicit part over that of the direct one.
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
    """The rounds: distil a surrogate, then move the teacher through it."""

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
        """Norm of the implicit part, uncapped, over that of the direct one, mean over all steps."""
        return sum(self._shares) / len(self._shares)

    def run(self, rounds: int, teaching: Teaching, *, outer_lr: float) -> None:
        """Do all rounds, each with epochs and a seed of its own; the last surrogate stays.

        Args:
            rounds: How many.
            teaching: How the surrogate is trained.
            outer_lr: Learning rate of the teacher.
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
        """The outer steps of one round, each on a batch of its own."""
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
                with sdpa_kernel(SDPBackend.MATH):  # which can be differentiated twice
                    found, outer = self._gradient(batch, leaders)
                share = norm(found.implicit) / max(norm(found.direct), 1e-12)
                if not math.isfinite(share) or not math.isfinite(outer):
                    raise TrainingError("the hypergradient is not finite; lower the learning rates")
                self._shares.append(share)
                weight = min(1.0, work.implicit_cap / max(share, 1e-12))
                for leader, slope in zip(leaders, found.total(weight), strict=True):
                    leader.grad = slope
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                update(loss=outer, implicit=share)

    def _gradient(self, batch: Batch, leaders: list[nn.Parameter]) -> tuple[Hypergradient, float]:
        """The hypergradient in the teacher's weights on one batch, and the outer loss."""
        images, labels, _rows = batch
        marked = self._trigger(images)
        taught, taught_marked = both(self._teacher, images, marked)
        # Apart, as in eval mode nothing is shared and the Hessian needs the clean images alone.
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

"""Training loss of a student: labels, distillation losses, hardening and a safeguard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustkd.core.errors import TrainingError
from robustkd.core.types import UNLABELLED, Images, Labels, Logits
from robustkd.models.features import taps
from robustkd.student.hardening import UniversalPerturbations, withstand
from robustkd.student.objective import DistillationObjective, EarlyStop
from robustkd.student.safeguard import Safeguard
from robustkd.student.teaching import Watch
from robustkd.student.terms import Outputs
from robustkd.training.learners import Unowned, hit_rate
from robustkd.training.processes import Portion, Processes


class Lessons(NamedTuple):
    """What a student learns from its teacher.

    Attributes:
        taps: Module paths of the student's stages.
        objective: The distillation losses.
        teach: Function that returns the teacher's outputs for a batch.
        stop: Weights of losses that end early; None if none does.
    """

    taps: tuple[str, ...]
    objective: DistillationObjective
    teach: Callable[[Images], Outputs]
    stop: EarlyStop | None


class DistillationLearner(nn.Module):
    """The student and its objective, as a module to train; the teacher is not a submodule."""

    def __init__(
        self,
        student: Watch,
        lessons: Lessons | None,
        hardening: UniversalPerturbations | None,
        safeguard: Safeguard | None,
        processes: Processes,
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = None if lessons is None else lessons.objective
        self.stop = None if lessons is None else lessons.stop
        self.safeguard = safeguard
        self._teach = None if lessons is None else lessons.teach
        self._processes = processes
        self._unowned = Unowned(hardening)

    @property
    def _hardening(self) -> UniversalPerturbations | None:
        return self._unowned.module

    def forward(
        self, images: Images, labels: Labels, portion: Portion | None = None
    ) -> dict[str, Tensor]:
        """Return ``loss``, ``acc`` and each part of the loss.

        Args:
            images: N x C x H x W in [0, 1].
            labels: Their labels; -1 for none.
            portion: Which images of a batch these are, if several processes divide it.
        """
        if self.safeguard is not None:
            self.safeguard.prepare(self.student.model)
        # Before the student, whose activations are kept for the backward pass.
        shares = self._shares()
        taught = self._teach(images) if self._teach is not None and any(shares.values()) else None
        seen, toward = images, labels[:0]
        if self._hardening is not None:
            seen, toward = self._hardening.perturb(images, labels, portion)
        everything: Outputs = self.student(seen)
        shown = everything.first(len(images))
        parts = {"ce": _cross_entropy(shown.logits, labels)}
        if self._hardening is not None:
            copies = len(toward)
            hardening_loss = withstand(
                shown.logits[:copies],
                everything.logits[len(images) :],
                labels[:copies],
                toward,
                recovered=self._hardening.recovered,
            )
            parts["harden"] = hardening_loss.sum() / len(labels)
        if self.objective is None or taught is None:
            parts.update(dict.fromkeys(shares, shown.logits.new_zeros(())))
        elif self._hardening is not None and self._hardening.distilled:
            # Copies are compared with the teacher's outputs for the clean images, which have been
            # computed. A student that imitates the teacher on clean images only may still inherit
            # the backdoor.
            terms = self.objective(everything, taught.repeat_first(len(toward)), shares)
            if portion is not None:
                terms = self._weighed(terms, len(everything.logits), len(images), portion.total)
            parts.update(terms)
        else:
            parts.update(self.objective(shown, taught, shares))
        if self.safeguard is not None:
            added = self.safeguard.loss(self.student.model, images)
            parts.update({} if added is None else {"safeguard": added})
        loss = torch.stack(list(parts.values())).sum()
        return {"loss": loss, "acc": hit_rate(shown.logits, labels), **parts}

    def _shares(self) -> dict[str, float]:
        """Return the factor of each distillation loss's weight in this step, in [0, 1]."""
        weights = {} if self.objective is None else self.objective.weights
        return {name: 1.0 if self.stop is None else self.stop.share(name) for name in weights}

    def _weighed(
        self, terms: Mapping[str, Tensor], compared: int, images: int, total: int
    ) -> dict[str, Tensor]:
        """Weigh means over images and copies of this process for the sum over all processes.

        The loop weighs processes by their images, but one may have more copies than another.
        """
        copies = 0 if self._hardening is None else self._hardening.copies(total)
        factor = compared / (total + copies) * total / images
        return {name: term * factor for name, term in terms.items()}

    def advance(self) -> None:
        """Update perturbations and loss weights, between the backward pass and the optimiser."""
        if self.stop is not None:
            self.stop.advance()
        if self.safeguard is not None:
            self.safeguard.advance()
        if self._hardening is not None:
            self._hardening.advance(self._processes)

    def check_active(self, images: Images) -> None:
        """Raise an error for a distillation loss that gives the student no gradient for images.

        Raises:
            TrainingError: If there is such a loss.
        """
        if self.objective is None or self._teach is None:
            return
        weights = [p for p in self.student.parameters() if p.requires_grad]
        with taps.frozen_modes(self.student):
            taught = self._teach(images)  # before the student, as in a step
            shown = self.student(images)
            parts = self.objective(shown, taught)
        for name, part in parts.items():
            gradients = (
                torch.autograd.grad(part, weights, retain_graph=True, allow_unused=True)
                if part.requires_grad
                else ()
            )
            if not any(g is not None and bool(g.any()) for g in gradients):
                raise TrainingError(
                    f"distillation loss {name!r} gives the student no gradient; "
                    "check the taps of teacher and student"
                )


def _cross_entropy(logits: Logits, labels: Labels) -> Tensor:
    """Compute the mean over the batch, in which images without a label count as zero."""
    total = nn.functional.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
    return total / len(labels)

"""Weighted sum of the distillation losses of a student.

A term combines a pure loss of :mod:`robustkd.training.losses` with the modules that it trains or
measures, such as connectors from the student's features to the teacher's, and margins. A new term
is one class and one row in :data:`robustkd.student.terms.TERMS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.core.validation import check_count, check_positive, check_share
from robustkd.models.features.layout import Layout
from robustkd.student.pair import Pair
from robustkd.student.terms import TERMS, Outputs


class DistillationObjective(nn.Module):
    """The chosen terms, as a function from the outputs of both networks to each term's batch mean.

    Args:
        weights: Weights of the terms by name, above 0.
        pair: Shapes of both networks.

    Raises:
        UsageError: If a name is unknown, a weight is not above 0, or a term does not fit.
    """

    def __init__(self, weights: Mapping[str, float], pair: Pair) -> None:
        super().__init__()
        check_weights(weights)
        self.weights = dict(weights)
        self.terms = nn.ModuleDict({name: TERMS[name](pair) for name in weights})
        self._layouts = pair.student_layouts, pair.teacher_layouts

    def forward(
        self, student: Outputs, teacher: Outputs, shares: Mapping[str, float] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute the weighted batch mean of each term, from features in any layout.

        Args:
            student: Outputs of the student.
            teacher: Outputs of the teacher.
            shares: Factor of each term's weight in this step, in [0, 1]; a term with 0 is not
                computed, and its value is 0. None for 1 everywhere.
        """
        student, teacher = map(_as_maps, (student, teacher), self._layouts)
        zero = student.logits.new_zeros(())
        weights = {
            name: weight * (1.0 if shares is None else shares[name])
            for name, weight in self.weights.items()
        }
        return {
            name: weight * self.terms[name](student, teacher).mean() if weight else zero
            for name, weight in weights.items()
        }


class EarlyStop(nn.Module):
    r"""Weights of distillation losses that fall to zero before the training ends.

    .. math:: w(s) = \mathrm{clamp}\left(2 - \frac{2 s}{u S}, 0, 1\right)

    in step s of S, with the share u of a loss: it has its full weight in the first half of the
    share, and none after it. When no loss is left, the student learns from labels alone and the
    teacher is not run any more.

    Source: Cho and Hariharan, ICCV 2019, arXiv 1910.01348, who stop distillation early because a
    small student cannot follow a large teacher to the end. Differences: the weight falls linearly,
    each loss has its own share, and the purpose here is that the student forgets what the labels
    do not require.

    Args:
        until: Share u of the training by name of the loss, in (0, 1]; other losses are used to the
            end.
        steps: Number of steps S of the training, at least 1.

    Raises:
        UsageError: If a number is out of range.
    """

    def __init__(self, until: Mapping[str, float], steps: int) -> None:
        super().__init__()
        check_count(steps=steps)
        shares: dict[str, Any] = {f"until of loss {name!r}": u for name, u in until.items()}
        check_share(**shares)
        self._until, self._steps, self._taken = dict(until), steps, 0

    def share(self, loss: str) -> float:
        """Return the factor of the loss's weight in the current step, in [0, 1]."""
        if loss not in self._until:
            return 1.0
        return min(1.0, max(0.0, 2 - 2 * self._taken / (self._until[loss] * self._steps)))

    def advance(self) -> None:
        """Count a step."""
        self._taken += 1

    def get_extra_state(self) -> Tensor:
        """Return what ``state_dict`` holds: the number of steps taken."""
        return torch.tensor(self._taken)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of steps taken."""
        self._taken = int(state)


def _as_maps(outputs: Outputs, layouts: tuple[Layout, ...]) -> Outputs:
    if not layouts:
        return outputs
    pairs = zip(layouts, outputs.features, strict=True)
    return Outputs(outputs.logits, tuple(layout.maps(features) for layout, features in pairs))


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise an error for an unknown term or a weight that is not above zero.

    Raises:
        UsageError: If there is one; the message names the first.
    """
    for name, weight in weights.items():
        if name not in TERMS:
            raise UsageError(f"unknown distillation loss {name!r}; expected {', '.join(TERMS)}")
        check_positive(**{f"weight of distillation loss {name!r}": weight})

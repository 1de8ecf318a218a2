"""Weighted sum of the distillation losses of a student.

A term combines a pure loss of :mod:`robustkd.training.losses` with the modules that it trains or
measures, such as connectors from the student's features to the teacher's, and margins. A new term
is one class and one row in :data:`robustkd.student.terms.TERMS`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.models.features.layout import Layout
from robustkd.student.pair import Pair
from robustkd.student.terms import TERMS, Outputs


class Objective(nn.Module):
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

    def forward(self, student: Outputs, teacher: Outputs) -> dict[str, Float[Tensor, ""]]:
        """Compute the weighted batch mean of each term, from features in any layout."""
        student, teacher = map(_as_maps, (student, teacher), self._layouts)
        return {
            name: self.weights[name] * term(student, teacher).mean()
            for name, term in self.terms.items()
        }


class EarlyStop(nn.Module):
    r"""Weight of the distillation losses, which falls to zero before the training ends.

    .. math:: w(s) = \mathrm{clamp}\left(2 - \frac{2 s}{u S}, 0, 1\right)

    in step s of S, with the share u: the losses have their full weight in the first half of the
    share, and none after it. From then on the student learns from labels alone and the teacher is
    not run any more.

    Source: Cho and Hariharan, ICCV 2019, arXiv 1910.01348, who stop distillation early because a
    small student cannot follow a large teacher to the end. Differences: the weight falls linearly,
    and the purpose here is that the student forgets what the labels do not require.

    Args:
        until: Share u of the training, in (0, 1].
        steps: Number of steps S of the training.

    Raises:
        UsageError: If ``until`` is out of range.
    """

    def __init__(self, until: float | int, steps: int) -> None:
        super().__init__()
        if not 0 < until <= 1:
            raise UsageError(f"until is {until}; expected more than 0 and at most 1")
        self._until, self._steps, self._taken = until, steps, 0

    def weight(self) -> float:
        """Return the weight in the current step, in [0, 1]."""
        return min(1.0, max(0.0, 2 - 2 * self._taken / (self._until * self._steps)))

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
        if not weight > 0:
            raise UsageError(f"weight of distillation loss {name!r} is {weight}; expected above 0")

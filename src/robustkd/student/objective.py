"""Weighted sum of the distillation losses of a student.

A term combines a pure loss of :mod:`robustkd.training.losses` with the modules that it trains or
measures, such as connectors from the student's features to the teacher's, and margins. A new term
is one class and one row in :data:`robustkd.student.terms.TERMS`.
"""

from __future__ import annotations

from collections.abc import Mapping

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


def _as_maps(outputs: Outputs, layouts: tuple[Layout, ...]) -> Outputs:
    if not layouts:
        return outputs
    pairs = zip(layouts, outputs.features, strict=True)
    return Outputs(outputs.logits, tuple(layout.maps(features) for layout, features in pairs))


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise an error for an unknown term or a weight that is not above zero.

    Raises:
        UsageError: Naming the first such term.
    """
    for name, weight in weights.items():
        if name not in TERMS:
            raise UsageError(f"unknown distillation loss {name!r}; expected {', '.join(TERMS)}")
        if not weight > 0:
            raise UsageError(f"weight of distillation loss {name!r} is {weight}; expected above 0")

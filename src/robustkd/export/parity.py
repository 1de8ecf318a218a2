"""Comparison of an exported file with the student."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from jaxtyping import Float
from torch import Tensor

from robustkd.core.errors import ThresholdError, UsageError
from robustkd.core.types import Logits
from robustkd.training.metrics import Proportion

LEAST_AGREEMENT: Final = 0.999
"""Smallest share of validation images for which file and student must predict the same class."""


@dataclass(frozen=True)
class Parity:
    """Agreement of a file with the student.

    Attributes:
        same: Proportion of images for which both predict the same class.
        largest: Largest absolute difference of two logits; not finite if a logit is not finite.
    """

    same: Proportion
    largest: float

    @property
    def holds(self) -> bool:
        """Return whether the agreement is sufficient."""
        finite = self.largest < float("inf")
        return finite and self.same.hits >= LEAST_AGREEMENT * self.same.n

    def record(self) -> dict[str, object]:
        """Return the values for JSON; null for a difference that is not finite."""
        largest = self.largest if self.largest < float("inf") else None
        return {"agreement": self.same.value, "n": self.same.n, "largest_difference": largest}


def compare(expected: Logits, found: Float[Tensor, "m others"]) -> Parity:
    r"""Compare two sets of logits of the same images.

    .. math:: \frac{1}{n} \sum_i [\arg\max z_i = \arg\max z'_i], \quad \max_{ik} |z_{ik} - z'_{ik}|

    Args:
        expected: Logits of the student, n x classes.
        found: Logits of the file, n x classes.

    Raises:
        UsageError: If the shapes differ, or there are no images.

    >>> import torch
    >>> compare(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0, 1.5], [0.0, 0.5]]))
    Parity(same=Proportion(hits=1, n=2), largest=3.0)
    """
    if expected.shape != found.shape or not len(expected):
        raise UsageError(
            f"logits of shapes {tuple(expected.shape)} and {tuple(found.shape)}; expected the same "
            "shape, and at least one image"
        )
    difference = (expected - found).abs().max().item()
    same = int((expected.argmax(dim=1) == found.argmax(dim=1)).sum())
    return Parity(
        Proportion(same, len(expected)), math.inf if math.isnan(difference) else difference
    )


def check(parity: Parity, name: str) -> None:
    """Raise an error if the agreement is not sufficient.

    Args:
        parity: Agreement on validation images.
        name: Name of the file.

    Raises:
        ThresholdError: If the agreement is not sufficient (exit code 5).
    """
    if not parity.holds:
        raise ThresholdError(
            f"{name} differs from the student: it predicts the student's class for "
            f"{100 * parity.same.value:.2f} % of {parity.same.n} validation images, expected at "
            f"least {100 * LEAST_AGREEMENT} % (largest difference of logits "
            f"{parity.largest:.3g}); nothing was written"
        )

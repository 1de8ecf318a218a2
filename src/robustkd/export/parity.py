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


def check_most(most: float | None, *, int8: bool) -> None:
    """Raise an error for a largest loss by int8 that is no fraction, or that no file could miss.

    Args:
        most: Largest loss of accuracy; None for any.
        int8: Whether an int8 file is written.

    Raises:
        UsageError: If it is out of range, or there is no int8 file.
    """
    if most is None:
        return
    if not 0 <= most <= 1:
        raise UsageError(f"max_int8_drop is {most}; expected a fraction from 0 to 1")
    if not int8:
        raise UsageError(f"max_int8_drop is {most} and int8 is False; expected one of them")


def check_drop(student: Proportion, file: Proportion, most: float, name: str) -> None:
    """Raise an error if a file is less accurate than the student by more than a threshold.

    Args:
        student: Accuracy of the student.
        file: Accuracy of the file on the same images.
        most: Largest loss, a fraction.
        name: Name of the file.

    Raises:
        ThresholdError: If the loss is larger (exit code 5).
    """
    lost = (student.hits - file.hits) / student.n
    if lost > most:
        raise ThresholdError(
            f"{name} is {100 * lost:.2f} points less accurate than the student: {file} against "
            f"{student} of {student.n} test images, expected at most {100 * most:.4g} points; "
            "nothing was written"
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

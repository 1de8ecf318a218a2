"""Metrics: accuracy, attack success rate and robust accuracy.

Proportions of batches can be added: ``sum(counts, start=Proportion(0, 0))``.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from robustkd.core.errors import UsageError
from robustkd.core.statistics import wilson
from robustkd.core.targets import Target
from robustkd.core.triggers import check_target_among, victims, wanted
from robustkd.core.types import Labels, Logits


@dataclass(frozen=True)
class Proportion:
    """A number of hits among a number of images.

    ``Proportion(0, 0)`` is the neutral element of ``+``; its value is not defined.

    Args:
        hits: Number of images that meet a condition, 0 to ``n``.
        n: Number of images.

    Raises:
        UsageError: If not 0 <= hits <= n, or if the value or interval of no images is requested.

    >>> Proportion(400, 460) + Proportion(433, 502)
    Proportion(hits=833, n=962)
    >>> print(Proportion(833, 962))
    86.6 % [84.3, 88.6]
    """

    hits: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.n:
            raise UsageError(f"{self.hits} hits among {self.n} images; expected 0 <= hits <= n")

    @property
    def value(self) -> float:
        """Share of hits, in [0, 1]."""
        self._require_images()
        return self.hits / self.n

    def wilson(self, confidence: float = 0.95) -> tuple[float, float]:
        """Compute the interval of :func:`robustkd.core.statistics.wilson`.

        Raises:
            UsageError: If no image was counted, or the confidence is out of range.

        >>> [round(end, 3) for end in Proportion(5, 10).wilson()]
        [0.237, 0.763]
        """
        return wilson(self.value, self.n, confidence)

    def _require_images(self) -> None:
        if self.n == 0:
            raise UsageError("no images were counted; expected at least one to give a proportion")

    def __add__(self, other: Proportion) -> Proportion:
        return Proportion(self.hits + other.hits, self.n + other.n)

    def __str__(self) -> str:
        if self.n == 0:
            return "no images"
        low, high = self.wilson()
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def accuracy(logits: Logits, labels: Labels) -> Proportion:
    """Count the images that are classified correctly (ACC).

    Args:
        logits: n x classes, of clean images.
        labels: True classes, n.

    Returns:
        Hits among all n images.

    Raises:
        UsageError: If there are not as many labels as rows of logits.

    >>> import torch
    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0], [4.0, 3.0]]), torch.tensor([0, 1, 1]))
    Proportion(hits=2, n=3)
    """
    return _count(_predicted(logits, labels) == labels)


def attack_success(logits: Logits, labels: Labels, *, target: Target) -> Proportion:
    """Count the triggered images that are classified as the attacker wants (ASR).

    Images whose label is already the wanted class are excluded, since this class is correct. So are
    images without a label.

    Args:
        logits: n x classes, of triggered images.
        labels: True classes, n.
        target: The attacker's class, or ``next`` for the next class of each image.

    Returns:
        Hits among the images of other classes. A batch may have none: it counts as
        ``Proportion(0, 0)``, and only the value of a total without images raises.

    Raises:
        UsageError: If the target is not a class of the logits, or the lengths differ.

    >>> import torch
    >>> logits, labels = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    >>> attack_success(logits, labels, target=1)
    Proportion(hits=1, n=2)
    >>> attack_success(logits, labels, target="next")
    Proportion(hits=1, n=3)
    """
    counted = _victims(logits, labels, target)
    hits = _predicted(logits, labels) == wanted(labels, target, logits.shape[1])
    return _count(hits[counted])


def robust_accuracy(logits: Logits, labels: Labels, *, target: Target) -> Proportion:
    """Count the triggered images that are classified correctly (RA).

    The images are those of `attack_success`, so that ASR + RA <= 1.

    Args:
        logits: n x classes, of triggered images.
        labels: True classes, n.
        target: The attacker's class, or ``next`` for the next class of each image.

    Returns:
        Hits among the images of other classes; possibly ``Proportion(0, 0)`` for a batch.

    Raises:
        UsageError: If the target is not a class of the logits, or the lengths differ.

    >>> import torch
    >>> robust_accuracy(
    ...     torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]), target=1
    ... )
    Proportion(hits=1, n=2)
    """
    counted = _victims(logits, labels, target)
    return _count((_predicted(logits, labels) == labels)[counted])


def _predicted(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the class of the largest logit, after a check of the lengths."""
    if len(logits) != len(labels):
        raise UsageError(f"{len(logits)} rows of logits and {len(labels)} labels; expected as many")
    return logits.argmax(dim=1)


def _victims(logits: Logits, labels: Labels, target: Target) -> Bool[Tensor, " n"]:
    """Return which images count, after a check of the target."""
    classes = logits.shape[1]
    check_target_among(target, classes)
    return victims(labels, target, classes)


def _count(hits: Bool[Tensor, " m"]) -> Proportion:
    return Proportion(int(hits.sum()), len(hits))

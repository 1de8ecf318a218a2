"""Counting: accuracy, attack success, robust accuracy, and what a defence is worth.

Counts of batches add up: ``sum(counts, start=Proportion(0, 0))``.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from robustkd.errors import UsageError
from robustkd.types import Labels, Logits


@dataclass(frozen=True)
class Proportion:
    """So many hits among so many images.

    ``Proportion(0, 0)`` is the neutral element of ``+``; its value is not defined.

    Args:
        hits: Images for which something held, 0 to ``n``.
        n: Images counted.

    Raises:
        UsageError: If not 0 <= hits <= n; and on reading the value or interval of no images.

    >>> Proportion(400, 460) + Proportion(433, 502)
    Proportion(hits=833, n=962)
    >>> print(Proportion(833, 962))
    86.6 % [84.3, 88.6]
    """

    hits: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.n:
            raise UsageError(f"{self.hits} hits among {self.n} images: expected 0 <= hits <= n")

    @property
    def value(self) -> float:
        """The share of hits, a fraction in [0, 1]."""
        self._require_images()
        return self.hits / self.n

    def wilson(self, confidence: float = 0.95) -> tuple[float, float]:
        r"""Wilson's score interval: the true shares that this count does not contradict.

        .. math:: \frac{p + z^2 / 2n \pm z \sqrt{p (1 - p) / n + z^2 / 4 n^2}}{1 + z^2 / n}

        It covers the images' sampling, not the spread over training runs.

        Args:
            confidence: Coverage, between 0 and 1, both excluded.

        Returns:
            Lower and upper end, fractions in [0, 1].

        Raises:
            UsageError: If no image was counted, or the confidence is out of range.

        Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
        JASA 22, 1927, doi 10.1080/01621459.1927.10502953.

        >>> [round(end, 3) for end in Proportion(5, 10).wilson()]
        [0.237, 0.763]
        """
        self._require_images()
        if not 0 < confidence < 1:
            raise UsageError(f"confidence is {confidence}: expected a fraction between 0 and 1")
        from scipy.stats import binomtest

        interval = binomtest(self.hits, self.n).proportion_ci(confidence, method="wilson")
        return float(interval.low), float(interval.high)

    def _require_images(self) -> None:
        if self.n == 0:
            raise UsageError("no images were counted: expected at least one to give a proportion")

    def __add__(self, other: Proportion) -> Proportion:
        return Proportion(self.hits + other.hits, self.n + other.n)

    def __str__(self) -> str:
        if self.n == 0:
            return "no images"
        low, high = self.wilson()
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def accuracy(logits: Logits, labels: Labels) -> Proportion:
    """Images whose largest logit is that of their label (ACC).

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


def attack_success(logits: Logits, labels: Labels, *, target: int) -> Proportion:
    """Triggered images, not of the target class, that are sent to the target class (ASR).

    Images of the target class are left out: to call them the target is no success of an attack.

    Args:
        logits: n x classes, of triggered images.
        labels: True classes, n.
        target: The attacker's class.

    Returns:
        Hits among the images of other classes. A batch may have none: it counts as
        ``Proportion(0, 0)``, and only the value of a total without images raises.

    Raises:
        UsageError: If the target is no class of the logits, or the lengths differ.

    >>> import torch
    >>> attack_success(
    ...     torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]), target=1
    ... )
    Proportion(hits=1, n=2)
    """
    victims = _victims(logits, labels, target)
    return _count((_predicted(logits, labels) == target)[victims])


def robust_accuracy(logits: Logits, labels: Labels, *, target: int) -> Proportion:
    """Triggered images that are given their true label all the same (RA).

    On the images of `attack_success`, those not of the target class, so that ASR + RA <= 1.

    Args:
        logits: n x classes, of triggered images.
        labels: True classes, n.
        target: The attacker's class.

    Returns:
        Hits among the images of other classes; possibly ``Proportion(0, 0)`` for a batch.

    Raises:
        UsageError: If the target is no class of the logits, or the lengths differ.

    >>> import torch
    >>> robust_accuracy(
    ...     torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]), target=1
    ... )
    Proportion(hits=1, n=2)
    """
    victims = _victims(logits, labels, target)
    return _count((_predicted(logits, labels) == labels)[victims])


def defence_effectiveness(
    *, acc_before: float, acc_after: float, asr_before: float, asr_after: float
) -> float:
    r"""Attack success removed, less the accuracy paid, on one scale (DER).

    .. math:: \frac{\max(0, ASR_{before} - ASR_{after}) - \max(0, ACC_{before} - ACC_{after}) + 1}
        {2}

    Args:
        acc_before: Accuracy without the defence, a fraction.
        acc_after: Accuracy with it.
        asr_before: Attack success rate without the defence.
        asr_after: Attack success rate with it.

    Returns:
        0 (accuracy lost, attack kept) to 1 (attack gone, accuracy kept); 0.5 for no defence.

    Raises:
        UsageError: If an argument is not in [0, 1].

    Source: Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware
    Minimization", ICCV 2023, arXiv 2304.11823.

    >>> defence_effectiveness(acc_before=0.75, acc_after=0.5, asr_before=1.0, asr_after=0.25)
    0.75
    """
    shares = {
        "acc_before": acc_before,
        "acc_after": acc_after,
        "asr_before": asr_before,
        "asr_after": asr_after,
    }
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UsageError(f"{name} is {share}: expected a fraction in [0, 1], not a percentage")
    return (max(0.0, asr_before - asr_after) - max(0.0, acc_before - acc_after) + 1) / 2


def _predicted(logits: Tensor, labels: Tensor) -> Tensor:
    """Class of the largest logit; the annotations leave the lengths to be checked here."""
    if len(logits) != len(labels):
        raise UsageError(f"{len(logits)} rows of logits and {len(labels)} labels: expected as many")
    return logits.argmax(dim=1)


def _victims(logits: Logits, labels: Labels, target: int) -> Bool[Tensor, " n"]:
    classes = logits.shape[1]
    if not 0 <= target < classes:
        raise UsageError(f"target {target} is not a class: expected 0 to {classes - 1}")
    return labels != target


def _count(hits: Bool[Tensor, " m"]) -> Proportion:
    return Proportion(int(hits.sum()), len(hits))

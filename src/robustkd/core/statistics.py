"""Arithmetic of shares: how far one can be trusted, and what a defence is worth.

Numbers alone: the tables are made without any network.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from robustkd.core.errors import UsageError


def wilson(share: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Wilson's score interval: the true shares that this one does not contradict.

    .. math:: \frac{p + z^2 / 2n \pm z \sqrt{p (1 - p) / n + z^2 / 4 n^2}}{1 + z^2 / n}

    It covers the images' sampling, not the spread over training runs.

    Args:
        share: Of hits, p, a fraction in [0, 1].
        n: Images counted, at least 1.
        confidence: Coverage, between 0 and 1, both excluded.

    Returns:
        Lower and upper end, fractions in [0, 1].

    Raises:
        UsageError: If the confidence is out of range.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
    JASA 22, 1927, doi 10.1080/01621459.1927.10502953.

    >>> low, high = wilson(0.5, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}: expected a fraction between 0 and 1")
    spread = NormalDist().inv_cdf((1 + confidence) / 2) ** 2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    # Rounding could leave a share of 0 or 1 outside, and a bar of negative length.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


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

"""Statistics of proportions: intervals, and the defence effectiveness rating.

The functions take and return plain numbers and do not import torch.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from robustkd.core.errors import UsageError
from robustkd.core.validation import check_count, check_share


def wilson(share: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Compute the Wilson score interval of a proportion.

    .. math:: \frac{p + z^2 / 2n \pm z \sqrt{p (1 - p) / n + z^2 / 4 n^2}}{1 + z^2 / n}

    The interval covers the sampling of the images, not the spread over training runs.

    Args:
        share: Observed proportion p, in [0, 1].
        n: Number of images, at least 1.
        confidence: Confidence level, in (0, 1).

    Returns:
        Lower and upper bound, in [0, 1].

    Raises:
        UsageError: If an argument is out of range.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
    JASA 22, 1927, doi 10.1080/01621459.1927.10502953.

    >>> low, high = wilson(0.5, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    check_share(zero=True, share=share)
    check_count(n=n)
    check_share(one=False, confidence=confidence)
    spread = NormalDist().inv_cdf((1 + confidence) / 2) ** 2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    # Rounding could put a proportion of 0 or 1 outside of its interval.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def difference_interval(
    first: float,
    first_ends: tuple[float, float],
    second: float,
    second_ends: tuple[float, float],
) -> tuple[float, float]:
    r"""Compute the interval of the difference of two independent proportions.

    .. math:: \left[ d - \sqrt{(p_1 - l_1)^2 + (u_2 - p_2)^2},\;
        d + \sqrt{(u_1 - p_1)^2 + (p_2 - l_2)^2} \right], \quad d = p_1 - p_2

    If both proportions were measured on the same images, as here, the interval is wider than
    necessary, since it ignores which images they have in common.

    Args:
        first: Proportion :math:`p_1`, in [0, 1].
        first_ends: Its interval :math:`[l_1, u_1]`, as :func:`wilson` computes it.
        second: Proportion :math:`p_2`, in [0, 1].
        second_ends: Its interval :math:`[l_2, u_2]`, likewise.

    Returns:
        Lower and upper bound of :math:`p_1 - p_2`, in [-1, 1].

    Source: Newcombe, "Interval Estimation for the Difference between Independent Proportions:
    Comparison of Eleven Methods", Statistics in Medicine 17, 1998 (method 10).

    >>> low, high = difference_interval(56 / 70, wilson(56 / 70, 70), 48 / 80, wilson(48 / 80, 80))
    >>> round(low, 4), round(high, 4)
    (0.0524, 0.3339)
    """
    gap = first - second
    below = math.hypot(first - first_ends[0], second_ends[1] - second)
    above = math.hypot(first_ends[1] - first, second - second_ends[0])
    return max(-1.0, gap - below), min(1.0, gap + above)


def defence_effectiveness(
    *, acc_before: float, acc_after: float, asr_before: float, asr_after: float
) -> float:
    r"""Compute the defence effectiveness rating (DER).

    .. math:: \frac{\max(0, ASR_{before} - ASR_{after}) - \max(0, ACC_{before} - ACC_{after}) + 1}
        {2}

    Args:
        acc_before: Clean accuracy without the defence, in [0, 1].
        acc_after: Clean accuracy with the defence, in [0, 1].
        asr_before: Attack success rate without the defence, in [0, 1].
        asr_after: Attack success rate with the defence, in [0, 1].

    Returns:
        A number from 0 (accuracy lost, attack unchanged) to 1 (attack removed, accuracy kept); 0.5
        for no defence.

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
            raise UsageError(f"{name} is {share}; expected a fraction in [0, 1], not a percentage")
    return (max(0.0, asr_before - asr_after) - max(0.0, acc_before - acc_after) + 1) / 2

"""Combination of the statistics to a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from robustkd.evaluation.audit.evidence import Evidence

Word: TypeAlias = Literal["suspicious", "no evidence", "inconclusive"]

LEVEL = 0.01
"""Usual level: accepted probability to call a network without a backdoor suspicious.

The p-values are those of approximate null distributions, so that the true rate can be higher: see
the calibration in docs/results/audit.md.
"""
DOUBTFUL = 5
"""p-values up to this multiple of the level are inconclusive."""


@dataclass(frozen=True)
class Verdict:
    """Verdict of an audit.

    Attributes:
        word: ``suspicious``, ``no evidence`` or ``inconclusive``. There is no word for a network
            without a backdoor, since no audit can show that.
        suspect: Index of the suspected class, if the verdict is ``suspicious``.
        p_value: Smallest p-value after Bonferroni's correction; None if none was computed, or if
            the statistics mean nothing.
        reason: Explanation in a few words.
        longer_helps: Whether a longer audit may give another verdict than ``inconclusive``.
    """

    word: Word
    suspect: int | None
    p_value: float | None
    reason: str
    longer_helps: bool = False


def threshold(level: float | int, tests: int) -> float:
    """Return the largest p-value of one statistic with which a network is suspicious.

    This is Bonferroni's correction, with the level divided and not the p-value multiplied.

    Args:
        level: Level of the test.
        tests: Number of p-values that are computed for one verdict, at least 1.
    """
    return level / tests


def combine(
    evidence: Mapping[str, Evidence],
    counted: frozenset[str],
    *,
    level: float | int = LEVEL,
    tests: int = 1,
    trouble: str = "",
) -> Verdict:
    r"""Combine the p-values of the statistics that count, by Bonferroni's correction.

    The statistics depend on each other, since they look at one network. The correction holds for
    any dependence: the probability that :math:`m \min_i p_i \le \alpha` is at most
    :math:`\alpha` without a backdoor, if each p-value is valid.

    Args:
        evidence: Evidence by the name of its statistic.
        counted: Names of the statistics that count.
        level: Level of the test.
        tests: Number of networks that are tested for one verdict, at least 1; p-values are
            multiplied by it.
        trouble: Reason why the statistics mean nothing, such as a model that does not know the
            task; empty if there is none.

    Returns:
        The verdict, with the class that the smallest p-value suspects. If a statistic that counts
        could not be computed, the others can make a network suspicious, but not give another
        verdict.
    """
    given = {name: each for name, each in evidence.items() if name in counted}
    known = {name: each.p_value for name, each in given.items() if each.p_value is not None}
    missing = next((each for each in given.values() if each.p_value is None), None)
    if trouble or not known:
        said, helps = (
            ("", False) if missing is None or trouble else (missing.said, missing.longer_helps)
        )
        reason = trouble or said or "no statistic could be computed"
        return Verdict("inconclusive", None, None, reason, helps)
    name = min(known, key=known.__getitem__)
    computed = tests * len(given)
    p_value = min(1.0, computed * known[name])
    if known[name] <= threshold(level, computed):
        return Verdict("suspicious", evidence[name].suspect, p_value, name)
    if missing is not None:
        return Verdict("inconclusive", None, p_value, missing.said, missing.longer_helps)
    if p_value <= DOUBTFUL * level:
        reason = f"{name} is near the level of {level:g}"
        return Verdict("inconclusive", None, p_value, reason, longer_helps=True)
    return Verdict("no evidence", None, p_value, "no p-value is near the level")

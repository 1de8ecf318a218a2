"""Loss of accuracy of a student compared with its teacher."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from robustkd.core.statistics import difference_interval
from robustkd.report.aggregate import Row, Statistic
from robustkd.report.tables import percent

LARGE = 0.03
"""A loss of accuracy is large if even its lower bound is above this fraction."""
LEAST_SHARE = 0.8
"""A loss of accuracy is also large if the student keeps less than this share of the teacher's."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Accuracy of a student compared with that of its teacher.

    Attributes:
        teacher: Accuracy of the teacher.
        student: Accuracy of the student.
    """

    teacher: Statistic
    student: Statistic

    @property
    def lost(self) -> float:
        """Accuracy of the teacher minus that of the student, a fraction."""
        return self.teacher.mean - self.student.mean

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the loss; None for several seeds or an unknown number of images."""
        if self.teacher.interval is None or self.student.interval is None:
            return None
        return difference_interval(
            self.teacher.mean, self.teacher.interval, self.student.mean, self.student.interval
        )

    @property
    def lowest(self) -> float:
        """Lower bound of the loss: that of the interval, or over all pairs of seeds."""
        if self.interval is not None:
            return self.interval[0]
        return self.teacher.lowest - self.student.highest

    @property
    def large(self) -> bool:
        """Whether the loss is large, see :data:`LARGE` and :data:`LEAST_SHARE`."""
        return is_large(self.lowest, student=self.student.mean, teacher=self.teacher.mean)

    def points(self) -> str:
        """Describe the loss in percentage points, with its interval if known.

        >>> one = Statistic(0.9, sd=None, n=1, lowest=0.9, highest=0.9, interval=(0.83, 0.94))
        >>> Drop(one, one).points()
        'the same accuracy'
        >>> half = Statistic(0.5, sd=None, n=1, lowest=0.5, highest=0.5, interval=(0.404, 0.596))
        >>> Drop(one, half).points()
        '40.0 points less [28.1, 50.4]'
        """
        if percent(abs(self.lost)) == "0.0":
            return "the same accuracy"
        sign = 1 if self.lost > 0 else -1
        ends = sorted(sign * end for end in self.interval or ())
        shown = f" [{', '.join(map(percent, ends))}]" if ends else ""
        return f"{percent(abs(self.lost))} points {'less' if sign > 0 else 'more'}{shown}"


def is_large(lowest: float, *, student: float, teacher: float) -> bool:
    """Return whether a loss of accuracy is large, see :data:`LARGE` and :data:`LEAST_SHARE`.

    Args:
        lowest: Lower bound of the loss, a fraction.
        student: Accuracy of the student.
        teacher: Accuracy of the teacher.
    """
    return lowest > LARGE or student < LEAST_SHARE * teacher


def drop_of(rows: Iterable[Row], student: Row | None) -> Drop | None:
    """Compare a student with the teacher of the same setting; None if either is missing."""
    teacher = next((row for row in rows if row.method == "teacher"), None)
    return Drop(teacher.acc, student.acc) if teacher is not None and student is not None else None

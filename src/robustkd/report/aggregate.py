"""Aggregation of results over seeds, with the methods in display order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from robustkd.core.methods import METHODS, label_of, look_up
from robustkd.core.statistics import wilson
from robustkd.report.results import ResultRow

_USELESS = 0.10
"""A teacher is useless if its accuracy is lower than that of a clean student by more than this.

Nobody would distil from such a teacher, so an attack that produces it is not counted.
"""


class Cell(NamedTuple):
    """One setting of the benchmark: data set, pair of architectures, and attack."""

    data: str
    pair: str
    attack: str


@dataclass(frozen=True, slots=True)
class Statistic:
    """A measure aggregated over seeds.

    Attributes:
        mean: Mean over seeds.
        sd: Sample standard deviation over seeds; None for a single seed.
        n: Number of seeds.
        lowest: Smallest value of any seed.
        highest: Largest value of any seed.
        interval: 95 % Wilson interval of a single seed; None for several seeds, and where the
            number of images is unknown.
    """

    mean: float
    sd: float | None
    n: int
    lowest: float
    highest: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Results of one method on one setting, aggregated over seeds.

    Attributes:
        data: Name of the data set.
        pair: Architectures of teacher and student.
        attack: Name of the attack.
        method: Name of the method.
        params: Number of parameters.
        acc: Clean accuracy.
        asr: Attack success rate; None if it was not measured.
        ra: Robust accuracy; None if it was not measured.
        seconds: Wall time in seconds.
        base: Share of clean images of other classes that are classified as the target class, or as
            the next class of each; None if it was not measured.
        attacks: Names in ``attack`` of all rows of the same models, one for each trigger of the
            teacher; None if the results are of a version that did not record them.
        runs: The results of each seed.
    """

    data: str
    pair: str
    attack: str
    method: str
    params: int
    acc: Statistic
    asr: Statistic | None
    ra: Statistic | None
    seconds: Statistic
    base: Statistic | None = None
    attacks: tuple[str, ...] | None = None
    runs: tuple[ResultRow, ...] = ()

    @property
    def cell(self) -> Cell:
        """The setting that the row belongs to."""
        return Cell(self.data, self.pair, self.attack)

    @property
    def words(self) -> str:
        """Display label of the method."""
        return label_of(self.method)

    @property
    def shares(self) -> tuple[Statistic, Statistic | None, Statistic | None]:
        """ACC, ASR and RA, in the order of every table."""
        return self.acc, self.asr, self.ra

    @property
    def ours(self) -> bool:
        """Whether the method is a defence of RobustKD."""
        known = look_up(self.method)
        return known is not None and known.ours


def aggregate(runs: Iterable[ResultRow]) -> list[Row]:
    """Aggregate runs over the seeds of each method on each setting.

    Settings keep the order of their first run. Methods are in the order of `METHODS`, followed by
    unknown methods in alphabetical order. If the number of parameters differs between seeds, the
    largest one is taken.
    """
    groups: dict[Cell, dict[str, list[ResultRow]]] = {}
    for run in runs:
        cell = groups.setdefault(Cell(run.data, run.pair, run.attack), {})
        cell.setdefault(run.method, []).append(run)
    return [
        _row(cell, method, methods[method])
        for cell, methods in groups.items()
        for method in sorted(methods, key=place)
    ]


def by_cell(rows: Iterable[Row]) -> dict[Cell, list[Row]]:
    """Group rows by setting; the order of rows and settings is kept."""
    cells: dict[Cell, list[Row]] = {}
    for row in rows:
        cells.setdefault(row.cell, []).append(row)
    return cells


def of_same_seeds(rows: Sequence[Row]) -> list[Row]:
    """Aggregate rows of a setting again, over those seeds alone whose ASR all of them have.

    Without it, means of different seeds would be compared where cells of a grid are missing.

    Returns:
        As many rows; none if there is no such seed.
    """
    of_each = ({run.seed for run in row.runs if run.asr is not None} for row in rows)
    seeds = set.intersection(*of_each)
    if not seeds:
        return []
    return [
        _row(row.cell, row.method, [run for run in row.runs if run.seed in seeds]) for row in rows
    ]


def _row(cell: Cell, method: str, runs: list[ResultRow]) -> Row:
    seconds = _statistic([(run.seconds, None) for run in runs])
    acc = _statistic([(run.acc, run.n_acc) for run in runs])
    if acc is None or seconds is None:
        raise AssertionError("acc and seconds are numbers in every run")
    return Row(
        *cell,
        method=method,
        params=max(run.params for run in runs),
        acc=acc,
        asr=_statistic([(run.asr, run.n_asr) for run in runs]),
        ra=_statistic([(run.ra, run.n_asr) for run in runs]),
        seconds=seconds,
        base=_statistic([(run.base, run.n_asr) for run in runs]),
        attacks=runs[0].attacks,
        runs=tuple(runs),
    )


def _statistic(measured: list[tuple[float | None, int | None]]) -> Statistic | None:
    known = [(value, n) for value, n in measured if value is not None]
    if not known:
        return None
    values = [value for value, _ in known]
    images = known[0][1]
    return Statistic(
        mean=fmean(values),
        sd=stdev(values) if len(values) > 1 else None,
        n=len(values),
        lowest=min(values),
        highest=max(values),
        interval=wilson(values[0], images) if len(values) == 1 and images else None,
    )


def place(method: str) -> tuple[int, str]:
    """Sort key of a method: first those of `METHODS` in their order, then the others by name."""
    known = ["teacher", *METHODS]
    return (known.index(method) if method in known else len(known), method)


def useless(members: Iterable[Row]) -> bool:
    """Whether the teacher is far less accurate than a student trained without a teacher."""
    found = {row.method: row for row in members}
    teacher, alone = found.get("teacher"), found.get("no-teacher")
    return (
        teacher is not None and alone is not None and alone.acc.mean - teacher.acc.mean > _USELESS
    )

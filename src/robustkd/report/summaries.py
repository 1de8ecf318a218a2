"""Averages over the attacks that an ordinary student inherits, one for each method.

An attack counts for a method if an ordinary student with the same losses inherits the backdoor: its
attack success rate (ASR) is high, and clearly higher than that of a student without a teacher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import NamedTuple

from robustkd.core.methods import Method, look_up
from robustkd.core.statistics import defence_effectiveness
from robustkd.report.aggregate import Row, by_cell, of_same_seeds, place, useless
from robustkd.report.tables import UNKNOWN
from robustkd.report.verdict import INHERITED

_EXCESS = 0.20
"""Least difference in ASR between an ordinary and a clean student that shows inheritance.

Below it, the trigger may work on any network, whether or not that network learned from the teacher.
"""
_SURVIVES = "survives"


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of a method over all attacks that an ordinary student inherits.

    Attributes:
        data: Name of the data set.
        pair: Architectures of teacher and student; ``all`` for a summary over all pairs.
        method: Name of the method.
        settings: Number of attacks that count and were measured with the method.
        counting: Number of attacks that count; more than ``settings`` if some were
            not measured with the method.
        asr: ASR of the method, a fraction; mean over the seeds that were measured with the ordinary
            students as well, then over attacks.
        ordinary_asr: The same for the ordinary student; if there are several, the highest ASR
            among them.
        worst: Largest ASR of any seed.
        lost: Accuracy of the ordinary student (of the most accurate one, if there are several)
            minus that of the method, a fraction; mean over attacks.
        effectiveness: Defence effectiveness rating, mean over attacks; see
            :func:`robustkd.core.statistics.defence_effectiveness`.
    """

    data: str
    pair: str
    method: str
    settings: int
    counting: int
    asr: float
    ordinary_asr: float
    worst: float
    lost: float
    effectiveness: float


def ordinary_students(members: Iterable[Row]) -> list[str]:
    """Names of the ordinary students of a setting, with any losses."""
    known = {row.method: look_up(row.method) for row in members}
    return [name for name, how in known.items() if how and how.losses and not how.defended]


def inherited(members: Iterable[Row], ordinary: Iterable[str]) -> bool:
    """Whether one of these ordinary students inherits the backdoor.

    This needs an ASR of at least :data:`robustkd.report.verdict.INHERITED`, and 20 points more than
    that of a student without a teacher, if there is one. If the teacher is useless, the answer is
    always False, since nobody would distil from it.
    """
    members = list(members)
    known = [asr for _, asr in _measured(members, ordinary)]
    return bool(known) and _word(members, max(known)) == _SURVIVES


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """Summarise each defended method on each pair, over the attacks that count.

    Pairs are summarised separately, because the cost of a method for one student says little about
    its cost for another. Methods with several pairs get a further summary over all pairs of a data
    set, in which every attack has the same weight.
    """
    pairs: dict[str, dict[str, list[list[Row]]]] = {}
    for cell, members in by_cell(rows).items():
        pairs.setdefault(cell.data, {}).setdefault(cell.pair, []).append(members)
    found: list[Summary] = []
    for data, settings in pairs.items():
        apart = [one for pair in settings.items() for one in _of_methods(data, *pair)]
        several = Counter(one.method for one in apart)
        together = _of_methods(data, "all", list(chain.from_iterable(settings.values())))
        found += apart + [one for one in together if several[one.method] > 1]
    return found


def _of_methods(data: str, pair: str, settings: Sequence[list[Row]]) -> list[Summary]:
    rows = chain.from_iterable(settings)
    found = (
        _summary((data, pair), name, method.rivals, settings)
        for name, method in _defended({row.method for row in rows}).items()
    )
    return [summary for summary in found if summary is not None]


def _defended(names: Iterable[str]) -> dict[str, Method]:
    """Return the defended methods of these names, in the order of every table."""
    known = {name: look_up(name) for name in sorted(names, key=place)}
    return {name: how for name, how in known.items() if how is not None and how.defended}


def _summary(
    pair: tuple[str, str], method: str, ordinary: Iterable[str], settings: Iterable[list[Row]]
) -> Summary | None:
    counting = [members for members in settings if inherited(members, ordinary)]
    duels = [duel for members in counting if (duel := _duel(members, method, ordinary))]
    if not duels:
        return None
    return Summary(
        *pair,
        method,
        len(duels),
        len(counting),
        fmean(duel.asr for duel in duels),
        fmean(duel.ordinary_asr for duel in duels),
        max(duel.worst for duel in duels),
        fmean(duel.ordinary_acc - duel.acc for duel in duels),
        fmean(
            defence_effectiveness(
                acc_before=duel.ordinary_acc,
                acc_after=duel.acc,
                asr_before=duel.ordinary_asr,
                asr_after=duel.asr,
            )
            for duel in duels
        ),
    )


class _Duel(NamedTuple):
    """A method and its ordinary students under one attack, over the same seeds.

    Of several ordinary students, each figure is the highest one. ``worst`` is the largest ASR of
    the method in any seed.
    """

    acc: float
    asr: float
    worst: float
    ordinary_acc: float
    ordinary_asr: float


def _duel(members: Sequence[Row], method: str, ordinary: Iterable[str]) -> _Duel | None:
    """Compare a method with its ordinary students; None if they have no seed in common."""
    own = find_row(members, method)
    if own is None or own.asr is None:
        return None
    others = [row for name in ordinary if (row := find_row(members, name)) is not None and row.asr]
    alike = of_same_seeds([own, *others])
    if not alike:
        return None
    (acc, asr), *figures = ((row.acc.mean, row.asr.mean) for row in alike if row.asr is not None)
    highest = (max(column) for column in zip(*figures, strict=True))
    return _Duel(acc, asr, own.asr.highest, *highest)


def _measured(members: Iterable[Row], methods: Iterable[str]) -> list[tuple[float, float]]:
    """Mean ACC and mean ASR of each of these methods whose ASR was measured."""
    rows = list(members)
    return [
        (row.acc.mean, row.asr.mean)
        for method in methods
        if (row := find_row(rows, method)) is not None and row.asr is not None
    ]


def verdict(members: Sequence[Row]) -> str:
    """Verdict on an attack, from the ASR of ordinary students and of the clean student.

    Returns:
        ``survives``, ``fools clean students``, ``control`` or ``useless teacher``; an en dash if
        no ASR was measured.
    """
    known = [asr for _, asr in _measured(members, ordinary_students(members))]
    return _word(members, max(known)) if known else UNKNOWN


def _word(members: Sequence[Row], highest: float) -> str:
    """Return the verdict for the highest ASR of ordinary students."""
    clean = find_row(members, "no-teacher")
    if useless(members):
        return "useless teacher"
    if highest < INHERITED:
        return "control"
    if clean is not None and clean.asr is not None and highest - clean.asr.mean < _EXCESS:
        return "fools clean students"
    return _SURVIVES


def find_row(members: Iterable[Row], method: str) -> Row | None:
    """Return the row of a method; None if there is none."""
    return next((row for row in members if row.method == method), None)

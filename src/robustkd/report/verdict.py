"""The results in one or two sentences of plain language.

The sentences claim no more than was measured. They state it if the ordinary student did not inherit
the backdoor, if the defence failed, or if no trigger is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from robustkd.core.methods import look_up
from robustkd.report.aggregate import Row, Statistic, by_cell, of_same_seeds, place, useless
from robustkd.report.drop import Drop, drop_of
from robustkd.report.tables import own_name, percent, spread

INHERITED = 0.30
"""Least ASR, a fraction, at which an ordinary student counts as inheriting the backdoor."""
TOLERATED = 0.10
"""Largest ASR of the worst seed, a fraction, at which a RobustKD student counts as defended."""
COSTLY = 0.05
"""A loss of accuracy above this fraction is introduced by the word "but"."""

_LARGE = "Large drop of accuracy"
_NO_STUDENT = "These results hold neither a RobustKD student nor an ordinary one."
_UNKNOWN_TRIGGER = "The attack success rate could not be measured, as no trigger is known"


@dataclass(frozen=True, slots=True)
class _Duel:
    """Comparison of the RobustKD student with the ordinary one on a setting; both have an ASR.

    The means of both students are of the same seeds. Lowest and highest ASR are of all seeds.
    """

    name: str
    robust: Row
    ordinary: Row
    robust_asr: Statistic
    ordinary_asr: Statistic
    floor: float | None
    drop: Drop | None

    @property
    def inherited(self) -> bool:
        return self.ordinary_asr.mean >= INHERITED

    @property
    def defended(self) -> bool:
        return self.robust_asr.highest <= TOLERATED

    @property
    def at_floor(self) -> bool:
        """Whether the trigger succeeds more often on a student trained without the teacher."""
        return self.floor is not None and max(self.robust_asr.mean, TOLERATED) < self.floor


def headline(rows: Sequence[Row]) -> str:
    """Summarise results in one or two sentences.

    The RobustKD student is compared with its ordinary student, and judged by its worst seed. Of
    several RobustKD students, the first hardened one in the table of methods is used; of several
    ordinary students, the one with the highest attack success rate. If there is no RobustKD
    student, the first one of a baseline takes its place. The means of both are over the seeds whose
    attack success rate was measured with both.
    """
    cells = by_cell(rows)
    if not cells:
        return "There are no runs to report."
    if len(cells) == 1:
        return _one_setting(rows)
    if all(row.method == "teacher" for row in rows):
        return _teachers_alone(rows)
    duels = [
        duel
        for cell, members in cells.items()
        if not useless(members)
        and (duel := _duel(own_name(cell, list(cells)), members)) is not None
    ]
    return _many_settings(duels, total=len(cells))


def _one_setting(rows: Sequence[Row]) -> str:
    if useless(rows):
        return (
            "The teacher is far less accurate than a student that was trained without it: nobody "
            "would distil from it, so these results cannot show what the defence is worth."
        )
    duel = _duel("", rows)
    if duel is not None:
        return _warning(rows, duel.robust, duel.ordinary) + _told(duel)
    robust, ordinary = _rivals(rows)
    only = robust or ordinary or _only_student(rows)
    if only is None:
        return _teacher_alone(rows)
    if only.asr is None:
        return _untriggered(rows, only, ordinary if robust else None)
    missing = "an ordinary student" if robust else "a RobustKD student"
    if robust is not None and ordinary is not None and ordinary.asr is not None:
        missing = f"{missing} of the same seed"
    return (
        f"{_warning(rows, only)}There is no ASR of {missing} to compare with: {_name(only)} "
        f"has {percent(only.acc.mean)} % accuracy and an attack success rate of "
        f"{_share(only.asr)}{_seeds(only)}."
    )


def plain_words(rows: Sequence[Row]) -> str:
    """Tell the results of one setting to readers who do not know the terms.

    Ordinary and RobustKD student are those of :func:`headline`. The conclusion is drawn only if, in
    every seed, the trigger rarely succeeds without the teacher and often with the ordinary student,
    and if no network lost much accuracy.

    Returns:
        One or two sentences; empty if one of the three students was not measured.
    """
    duel = _duel("", rows)
    if duel is None or duel.floor is None:
        return ""
    alone, ordinary, robust = (
        f"{100 * share:.0f}" for share in (duel.floor, duel.ordinary_asr.mean, duel.robust_asr.mean)
    )
    said = (
        f"Of 100 images with the trigger, the ordinary student sends about {ordinary} to the "
        f"attacker's class, a student that never met the teacher {alone}, and {_name(duel.robust)} "
        f"{robust}."
    )
    without = _first(rows, "no-teacher")
    clear = (
        without is not None
        and without.asr is not None
        and without.asr.highest <= TOLERATED
        and duel.ordinary_asr.lowest >= INHERITED
        and duel.defended
    )
    if not clear or useless(rows) or _warning(rows, duel.robust, duel.ordinary):
        return said
    return (
        f"{said} The ordinary student inherited the backdoor from its teacher; "
        f"{_name(duel.robust)} did not."
    )


def main_drop(rows: Sequence[Row]) -> Drop | None:
    """Compare the teacher of a setting with the student that the headline is about.

    Returns:
        The comparison; None if the teacher was not measured or there is no such student.
    """
    robust, ordinary = _rivals(rows)
    return drop_of(rows, robust or ordinary or _only_student(rows))


def _warning(rows: Sequence[Row], student: Row, ordinary: Row | None = None) -> str:
    """Return a first sentence if a student lost much accuracy to the teacher or to its rival."""
    beside = {"teacher": drop_of(rows, student)}
    if ordinary is not None:
        beside["ordinary student"] = Drop(ordinary.acc, student.acc)
    for other, drop in beside.items():
        if drop is not None and drop.large:
            return (
                f"{_LARGE}: {_name(student)} has {spread(drop.student, unit=True)} accuracy, the "
                f"{other} {spread(drop.teacher, unit=True)}: {drop.points()}. "
            )
    return ""


def _untriggered(rows: Sequence[Row], only: Row, ordinary: Row | None) -> str:
    """Return the headline of a run without a known trigger: the accuracies."""
    drop = drop_of(rows, only)
    if drop is None:
        other = f", the ordinary student {percent(ordinary.acc.mean)} %" if ordinary else ""
        scores = f"{_name(only)} has {percent(only.acc.mean)} % accuracy{other}{_seeds(only)}"
        return f"{_UNKNOWN_TRIGGER}: {scores}."
    said = (
        f"{_name(only)} has {spread(only.acc, unit=True)} accuracy, the teacher "
        f"{spread(drop.teacher, unit=True)}: {drop.points()}{_seeds(only)}."
    )
    said = f"{_LARGE}: {said}" if drop.large else said[0].upper() + said[1:]
    return f"{said} {_UNKNOWN_TRIGGER}."


def _teachers_alone(rows: Sequence[Row]) -> str:
    """Return the headline of several settings without students, such as two triggers."""
    rates = [row.asr.mean for row in rows if row.asr is not None]
    if not rates:
        return _NO_STUDENT
    lowest, highest = percent(min(rates)), percent(max(rates))
    which, warning = "teachers were", "They were trained with a backdoor: use them"
    if _of_one_teacher(rows):
        which, warning = "the teacher was", "It was trained with backdoors: use it"
    return (
        f"Only {which} measured, under {len(rates)} triggers with attack success rates of "
        f"{lowest} % to {highest} %. {warning} for research only."
    )


def _of_one_teacher(rows: Sequence[Row]) -> bool:
    """Return whether rows are about several triggers of one teacher, of one seed."""
    models = {(row.data, row.pair, _attacks_of_model(row)) for row in rows}
    return len(models) == 1 and len(rows) > 1 and all(row.acc.n == 1 for row in rows)


def _attacks_of_model(row: Row) -> frozenset[str]:
    """Return the names of all attacks on the model of a row.

    Where results do not have them, the names of two triggers tell them: they are named after each
    other, as in ``tone (with blend)``.
    """
    if row.attacks is not None:
        return frozenset({row.attack, *row.attacks})
    first, _, second = row.attack.removesuffix(")").partition(" (with ")
    return frozenset({row.attack, f"{second} (with {first})"} if second else {row.attack})


def _teacher_alone(rows: Sequence[Row]) -> str:
    teacher = _first(rows, "teacher")
    if teacher is None or teacher.asr is None:
        return _NO_STUDENT
    return (
        f"The teacher has {spread(teacher.acc, unit=True)} accuracy, and its trigger an attack "
        f"success rate of {spread(teacher.asr, unit=True)}{_seeds(teacher)}. It was trained with a "
        "backdoor: use it for research only."
    )


def _told(duel: _Duel) -> str:
    gap = duel.ordinary.acc.mean - duel.robust.acc.mean
    cost = f"{'but ' if gap > COSTLY else ''}with {_points(gap)}{_seeds(duel.robust)}"
    if not duel.inherited and (duel.defended or duel.robust_asr.mean <= duel.ordinary_asr.mean):
        verdict = (
            "The ordinary student did not inherit the backdoor, so this attack cannot show what "
            "the defence is worth. "
        )
    elif duel.defended:
        verdict = ""
    elif duel.at_floor:
        verdict = "The remaining rate is no higher than on a student without the teacher. "
    elif duel.robust_asr.mean > duel.ordinary_asr.mean / 2:
        verdict = "The defence failed on this attack. "
    else:
        verdict = "The defence helped, but not enough. "
    return (
        f"{verdict}Attack success rate: {_share(duel.ordinary_asr)} for the ordinary student, "
        f"{_share(duel.robust_asr)} for {_name(duel.robust)}, {cost}.{_without_teacher(duel)}"
    )


def _many_settings(duels: Sequence[_Duel], *, total: int) -> str:
    if not duels:
        return f"None of the {total} settings has an ASR of both students to compare."
    alive = [duel for duel in duels if duel.inherited]
    if not alive:
        most = max(duel.ordinary_asr.mean for duel in duels)
        start = f"In none of the {len(duels)} settings did the ordinary student inherit the "
        return (
            f"{start}backdoor (ASR at most {percent(most)} %), so they cannot show what the "
            f"defence is worth.{_failures(duels)}"
        )
    worst = max(alive, key=lambda duel: duel.robust_asr.highest)
    ordinary = fmean(duel.ordinary_asr.mean for duel in alive)
    robust = fmean(duel.robust_asr.mean for duel in alive)
    gap = fmean(duel.ordinary.acc.mean - duel.robust.acc.mean for duel in alive)
    return (
        f"The ordinary student inherits the backdoor in {len(alive)} of {total} settings. Mean "
        f"attack success rate there: {percent(ordinary)} % for the ordinary student, "
        f"{percent(robust)} % for {_defender(duels)} (at worst "
        f"{percent(worst.robust_asr.highest)} %, {worst.name}), with "
        f"{_points(gap)}.{_failures(duels)}{_costs(duels)}"
    )


def _costs(duels: Iterable[_Duel]) -> str:
    """Return a sentence about the settings in which the student lost much accuracy."""
    names = [duel.name for duel in duels if duel.drop is not None and duel.drop.large]
    if not names:
        return ""
    settings = "setting" if len(names) == 1 else "settings"
    return f" {_LARGE} from teacher to student in {len(names)} {settings}: {_listed(names)}."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")


def _defender(duels: Iterable[_Duel]) -> str:
    """Return what the defended students of all settings are called."""
    names = {_name(duel.robust) for duel in duels}
    return names.pop() if len(names) == 1 else "the defended student"


def _failures(duels: Sequence[_Duel]) -> str:
    names = [duel.name for duel in duels if not duel.defended]
    if not names:
        return ""
    settings = "setting" if len(names) == 1 else "settings"
    limit = f"{100 * TOLERATED:.0f} %"
    student = _defender(duels)
    student = f"{student[0].upper()}{student[1:]}"
    return f" {student} exceeds {limit} in {len(names)} {settings}: {_listed(names)}."


def _without_teacher(duel: _Duel) -> str:
    """Return a second sentence if the attack also succeeds on the student without a teacher."""
    if duel.floor is None or duel.floor <= TOLERATED:
        return ""
    told = f" For a student trained without the teacher it is {percent(duel.floor)} %"
    if duel.floor < duel.ordinary_asr.mean / 2:
        return f"{told}."
    return f"{told}, so much of it is due to the trigger itself, not to inheritance."


def _duel(name: str, rows: Sequence[Row]) -> _Duel | None:
    robust, ordinary = _rivals(rows)
    if robust is None or ordinary is None or robust.asr is None or ordinary.asr is None:
        return None
    alone = _first(rows, "no-teacher")
    floor = alone.asr.mean if alone is not None and alone.asr is not None else None
    drop = drop_of(rows, robust)
    alike = [
        (same, replace(same.asr, lowest=row.asr.lowest, highest=row.asr.highest))
        for same, row in zip(of_same_seeds([robust, ordinary]), (robust, ordinary), strict=False)
        if same.asr is not None and row.asr is not None
    ]
    if not alike:
        return None
    (robust, robust_asr), (ordinary, ordinary_asr) = alike
    return _Duel(name, robust, ordinary, robust_asr, ordinary_asr, floor, drop)


def _rivals(rows: Sequence[Row]) -> tuple[Row | None, Row | None]:
    """Return the RobustKD student, or that of a baseline, and its ordinary student."""
    found = {row.method: how for row in rows if (how := look_up(row.method)) is not None}
    defended = [name for name in sorted(found, key=place) if found[name].defended]
    # Methods of RobustKD come first, and of these the ones that harden the student.
    defended.sort(key=lambda name: (not found[name].ours, found[name].hardening is None))
    robust = _first(rows, *defended)
    own = found[robust.method].rivals if robust is not None else ()
    known = [row for row in rows if row.method in own and row.asr is not None]
    most = max(known, key=lambda row: row.asr.mean if row.asr else 0, default=None)
    return robust, most or _first(rows, *own, "ofd", "kd", "mix")


def _first(rows: Iterable[Row], *methods: str) -> Row | None:
    found = {row.method: row for row in rows}
    return next((found[method] for method in methods if method in found), None)


def _only_student(rows: Sequence[Row]) -> Row | None:
    """Return the student of a run of one method that is neither a defence nor ordinary."""
    students = [row for row in rows if row.method != "teacher"]
    return students[0] if len(students) == 1 else None


def _name(student: Row) -> str:
    if student.method == "no-teacher":
        return "the student without a teacher"
    known = look_up(student.method)
    if student.ours or known is None or not known.defended:
        return "the RobustKD student" if student.ours else "the ordinary student"
    return f"the student of {student.words}"


def _share(asr: Statistic) -> str:
    worst = f" (worst seed {percent(asr.highest)} %)" if asr.highest > TOLERATED >= asr.mean else ""
    return f"{percent(asr.mean)} %{worst}"


def _points(gap: float) -> str:
    """Describe a difference in accuracy, in percentage points; a positive ``gap`` is a loss."""
    if percent(abs(gap)) == "0.0":
        return "the same accuracy"
    return f"{percent(abs(gap))} points {'less' if gap > 0 else 'more'} accuracy"


def _seeds(row: Row) -> str:
    return " (one seed)" if row.acc.n == 1 else f" (mean of {row.acc.n} seeds)"

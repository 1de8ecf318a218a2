"""The tables and the figure of a grid over attacks: which survive, and what each method does.

An attack counts for a method where the ordinary student by the same losses inherits it; the others
are controls, listed and left out of every average.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from robustkd.core.methods import METHODS, label_of
from robustkd.core.statistics import defence_effectiveness
from robustkd.report.aggregate import (
    Cell,
    Row,
    Statistic,
    by_cell,
    place,
    useless,
)
from robustkd.report.tables import UNKNOWN, markdown, percent, spread
from robustkd.report.verdict import INHERITED

PARTS: Mapping[str, str] = {
    "OFD": "ofd",
    "OFD, detoxified": "paper",
    "mix": "mix",
    "mix, hardened": "default",
    "mix, both": "both",
}
"""The methods that show what each part does, by their losses and the parts that they have."""
_EXCESS = 0.20
"""An attack this far above a clean student's ASR is inherited and not the trigger's own doing."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A method over all attacks on a pair, or on all pairs, that the ordinary student inherits.

    Attributes:
        data: Name of the data set.
        pair: Teacher's and student's architecture; ``all`` for those of all pairs.
        method: The method.
        settings: How many such attacks there are.
        asr: Mean of their mean ASR.
        ordinary_asr: The same of the ordinary student; of several, the one with the highest.
        worst: Largest ASR of any seed.
        lost: Accuracy of the ordinary student, of several the most accurate, minus that of the
            method; mean over the attacks.
        effectiveness: Both in one figure, :func:`robustkd.core.statistics.defence_effectiveness`.
    """

    data: str
    pair: str
    method: str
    settings: int
    asr: float
    ordinary_asr: float
    worst: float
    lost: float
    effectiveness: float


def grid_files(rows: Sequence[Row]) -> dict[str, str]:
    """Name to content of everything that a grid's results are shown in."""
    from robustkd.report.figures import scatter  # matplotlib is slow to import

    return {
        "headline.md": headline_table(rows),
        "attacks.md": attack_table(rows),
        "summary.md": summary_table(rows),
        "ablation.md": ablation_table(rows),
        "table.csv": csv_table(rows),
        "acc-asr.svg": scatter(rows) + "\n",
    }


def inherited(members: Iterable[Row], ordinary: Iterable[str]) -> bool:
    """Whether the attack success rate of one of these ordinary students is high enough to count.

    None does whose teacher is of no use: nobody distils from it.
    """
    members = list(members)
    return not useless(members) and any(asr >= INHERITED for _, asr in _measured(members, ordinary))


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """One summary for each pair and defended method with any attack that counts.

    Pairs are kept apart: what a method costs one student says little of what it costs another. A
    data set's last lines are over all of its pairs, for methods that have several; there every
    attack weighs the same, so a pair with more of them weighs more.
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
    found = (
        _summary((data, pair), name, method.rivals, settings)
        for name, method in METHODS.items()
        if method.defended
    )
    return [summary for summary in found if summary is not None]


def _summary(
    pair: tuple[str, str], method: str, ordinary: Iterable[str], settings: Iterable[list[Row]]
) -> Summary | None:
    duels = [
        (own.acc.mean, own.asr, _measured(members, ordinary))
        for members in settings
        if inherited(members, ordinary)
        and (own := _find(members, method)) is not None
        and own.asr is not None
    ]
    if not duels:
        return None
    best = [(max(acc for acc, _ in others), max(asr for _, asr in others)) for *_, others in duels]
    return Summary(
        *pair,
        method,
        len(duels),
        fmean(asr.mean for _, asr, _ in duels),
        fmean(asr for _, asr in best),
        max(asr.highest for _, asr, _ in duels),
        fmean(before - acc for (acc, *_), (before, _) in zip(duels, best, strict=True)),
        fmean(
            defence_effectiveness(
                acc_before=before, acc_after=acc, asr_before=most, asr_after=asr.mean
            )
            for (acc, asr, _), (before, most) in zip(duels, best, strict=True)
        ),
    )


def _measured(members: Iterable[Row], methods: Iterable[str]) -> list[tuple[float, float]]:
    """ACC and ASR, mean over seeds, of these methods where both are known."""
    rows = list(members)
    return [
        (row.acc.mean, row.asr.mean)
        for method in methods
        if (row := _find(rows, method)) is not None and row.asr is not None
    ]


def summary_table(rows: Sequence[Row]) -> str:
    """Markdown: one line for each pair and defended method, over the attacks that count."""
    all_summaries = summaries(rows)
    several = [
        name for name in ("data", "pair") if len({getattr(s, name) for s in all_summaries}) > 1
    ]
    head = [
        *map(str.capitalize, several),
        "Method",
        "Attacks",
        "ASR % ordinary",
        "ASR %",
        "ASR % worst seed",
        "ACC points lost",
        "DER %",
    ]
    lines = [
        [
            *(getattr(found, name) for name in several),
            label_of(found.method),
            str(found.settings),
            percent(found.ordinary_asr),
            percent(found.asr),
            percent(found.worst),
            percent(round(found.lost, 3) + 0.0),  # no minus before a zero
            percent(found.effectiveness),
        ]
        for found in all_summaries
    ]
    return _markdown(head, lines, numbers=6)


def attack_table(rows: Sequence[Row]) -> str:
    """Markdown: one line an attack, ACC / ASR of each method, and what became of the attack.

    ``Base`` is the share of clean images of other classes that a student without any teacher
    sends to the target: no ASR below it means anything.
    """
    cells = by_cell(rows)
    methods = sorted({row.method for row in rows}, key=place)
    head, names = _settings(cells)
    head += ["Base", *(label_of(method) for method in methods), "n", "Verdict"]
    lines = []
    for cell, members in cells.items():
        shown = [_figures(_find(members, method)) for method in methods]
        lines.append([*names[cell], _base(members), *shown, _counts(members), verdict(members)])
    return _markdown(head, lines, numbers=0)


def headline_table(rows: Sequence[Row]) -> str:
    """Markdown: ACC / ASR under the attacks that an ordinary student inherits, in few columns.

    Of the ordinary students it shows the one with the highest ASR, and which one it is; beside it
    the student without a teacher and the methods of RobustKD that were measured, but not ``both``.
    """
    cells = {
        cell: members
        for cell, members in by_cell(rows).items()
        if inherited(members, METHODS["default"].rivals)
    }
    if not cells:
        return "No ordinary student inherits any of these attacks.\n"
    head, names = _settings(cells)
    known = {row.method for members in cells.values() for row in members}
    methods = [
        name
        for name, method in METHODS.items()
        if method.defended and name != "both" and name in known
    ]
    lines = []
    for cell, members in cells.items():
        highest = max(
            (row for row in members if row.method in METHODS["default"].rivals and row.asr),
            key=lambda row: row.asr.mean if row.asr else 0,
        )
        beside = [_find(members, method) for method in ("no-teacher", *methods)]
        clean, *robust = map(_figures, beside)
        most = f"{_figures(highest)} ({highest.method})"
        counted = [highest, *(row for row in beside if row is not None)]
        lines.append([*names[cell], clean, most, *robust, _counts(counted)])
    head += ["student, no teacher", "ordinary student with the highest ASR"]
    return _markdown([*head, *map(label_of, methods), "n"], lines, numbers=0)


def ablation_table(rows: Sequence[Row]) -> str:
    """Markdown: ACC / ASR with neither part, with each alone and with both.

    One line for each setting that an ordinary student inherits and all of these students were
    measured on, and their means last.
    """
    cells = by_cell(rows)
    head, names = _settings(cells)
    whole: list[tuple[list[str], list[Row]]] = []
    for cell, members in cells.items():
        shown = [row for method in PARTS.values() if (row := _find(members, method)) is not None]
        if len(shown) == len(PARTS) and inherited(members, METHODS["both"].rivals):
            whole.append((names[cell], shown))
    lines = [[*name, *map(_figures, shown), _counts(shown)] for name, shown in whole]
    if whole:
        columns = list(zip(*(shown for _, shown in whole), strict=True))
        means = [
            f"{percent(fmean(row.acc.mean for row in column))} / "
            f"{percent(fmean(row.asr.mean for row in column if row.asr))}"
            for column in columns
        ]
        lines.append([*("" for _ in head[1:]), "mean", *means, ""])
    return _markdown([*head, *PARTS, "n"], lines, numbers=0)


def _settings(cells: Iterable[Cell]) -> tuple[list[str], dict[Cell, list[str]]]:
    """The columns that tell cells apart, and each cell's words for them; the attack is the last."""
    cells = list(cells)
    several = [i for i in range(2) if len({cell[i] for cell in cells}) > 1]
    head = [*(("Data", "Pair")[i] for i in several), "Attack"]
    return head, {cell: [*(cell[i] for i in several), cell.attack] for cell in cells}


def verdict(members: Sequence[Row]) -> str:
    """What the ordinary students did with the backdoor, beside one that never met the teacher."""
    ordinary = dict.fromkeys(chain.from_iterable(method.rivals for method in METHODS.values()))
    known = [asr for _, asr in _measured(members, ordinary)]
    clean = _find(members, "no-teacher")
    if not known:
        return UNKNOWN
    if useless(members):
        return "useless teacher"
    if max(known) < INHERITED:
        return "control"
    if clean is not None and clean.asr is not None and max(known) - clean.asr.mean < _EXCESS:
        return "fools clean students"
    return "survives"


def csv_table(rows: Sequence[Row]) -> str:
    """Everything, one line for each method and setting, with fractions and not percentages."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*Cell._fields, "method", "n"]
        + [f"{measure}_{part}" for measure in ("acc", "asr", "ra") for part in _PARTS]
    )
    for row in rows:
        parts = [part for measure in row.shares for part in _parts(measure)]
        names = map(_inert, (*row.cell, row.method))
        writer.writerow([*names, row.acc.n, *parts])
    return text.getvalue()


def _inert(name: str) -> str:
    """A name that no spreadsheet takes for a formula: it begins with a quotation mark then."""
    return f"'{name}" if name.lstrip().startswith(("=", "+", "-", "@")) else name


_PARTS = ("mean", "sd", "lowest", "highest")


def _parts(value: Statistic | None) -> list[str]:
    known = [getattr(value, part, None) for part in _PARTS]
    return ["" if part is None else f"{part:.6f}" for part in known]


def _figures(row: Row | None) -> str:
    return UNKNOWN if row is None else f"{percent(row.acc.mean)} / {spread(row.asr)}"


def _counts(members: Iterable[Row]) -> str:
    """How many seeds, from the fewest to the most."""
    seeds = [row.acc.n for row in members]
    return "-".join(str(n) for n in dict.fromkeys((min(seeds), max(seeds))))


def _base(members: Iterable[Row]) -> str:
    """What goes to the target with no trigger, in the student that never met the teacher."""
    row = _find(members, "no-teacher")
    return UNKNOWN if row is None or row.base is None else percent(row.base.mean)


def _find(members: Iterable[Row], method: str) -> Row | None:
    return next((row for row in members if row.method == method), None)


def _markdown(head: list[str], lines: list[list[str]], *, numbers: int) -> str:
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    escaped = [[markdown(text) for text in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *escaped])

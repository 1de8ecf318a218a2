"""Tables and figure of a grid: which attacks survive distillation, and what each method achieves.

An attack counts for a method if an ordinary student with the same losses inherits the backdoor: its
attack success rate (ASR) is high, and clearly higher than that of a student without a teacher. The
other attacks are controls: they are listed, but excluded from every average.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from robustkd.core.methods import METHODS, Method, label_of, look_up
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
    "mix, hardened": "additions",
    "mix, both": "both",
}
"""Methods of the ablation table, by column heading: the losses and the parts that are switched on.
"""
_EXCESS = 0.20
"""Least difference in ASR between an ordinary and a clean student that shows inheritance.

Below it, the trigger may work on any network, whether or not that network learned from the teacher.
"""
_SURVIVES = "survives"
_NONE_COUNTS = (
    "No attack counts: with none of them, an ordinary student has an ASR of at least 30 % "
    "and 20 points more than a student without a teacher.\n"
)
_NONE_WHOLE = (
    "No attack that an ordinary student inherits was measured with all of the methods "
    f"{', '.join(PARTS.values())}.\n"
)


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of a method over all attacks that an ordinary student inherits.

    Attributes:
        data: Name of the data set.
        pair: Architectures of teacher and student; ``all`` for a summary over all pairs.
        method: Name of the method.
        settings: Number of attacks that count.
        asr: ASR of the method, a fraction; mean over seeds, then over attacks.
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
    asr: float
    ordinary_asr: float
    worst: float
    lost: float
    effectiveness: float


GRID_FILES = (
    *("headline.md", "attacks.md", "summary.md", "ablation.md"),
    *("table.csv", "acc-asr.svg"),
)
"""Names of the files of :func:`grid_files`."""


def grid_files(rows: Sequence[Row]) -> dict[str, str]:
    """Contents of all files that show the results of a grid, by file name."""
    from robustkd.report.figures import scatter  # Imported here, since matplotlib is slow to load.

    return {
        "headline.md": headline_table(rows),
        "attacks.md": attack_table(rows),
        "summary.md": summary_table(rows),
        "ablation.md": ablation_table(rows),
        "table.csv": csv_table(rows),
        "acc-asr.svg": scatter(rows) + "\n",
    }


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
                acc_before=before, acc_after=acc, asr_before=highest, asr_after=asr.mean
            )
            for (acc, asr, _), (before, highest) in zip(duels, best, strict=True)
        ),
    )


def _measured(members: Iterable[Row], methods: Iterable[str]) -> list[tuple[float, float]]:
    """Mean ACC and mean ASR of each of these methods whose ASR was measured."""
    rows = list(members)
    return [
        (row.acc.mean, row.asr.mean)
        for method in methods
        if (row := _find(rows, method)) is not None and row.asr is not None
    ]


def summary_table(rows: Sequence[Row]) -> str:
    """Markdown table with one line per pair and defended method, over the attacks that count."""
    all_summaries = summaries(rows)
    if not all_summaries and not _counting(rows):
        return _NONE_COUNTS
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
            percent(round(found.lost, 3) + 0.0),  # Adding 0.0 avoids "-0.0".
            percent(found.effectiveness),
        ]
        for found in all_summaries
    ]
    return _markdown(head, lines, numbers=6)


def attack_table(rows: Sequence[Row]) -> str:
    """Markdown table with one line per attack: ACC / ASR of each method, and the verdict.

    ``Base`` is the share of clean images of other classes that a student without any teacher
    sends to the target class. An ASR below this share cannot be distinguished from no attack.
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
    """Markdown table of ACC / ASR under the attacks that an ordinary student inherits.

    The columns are the student without a teacher, the ordinary student with the highest ASR and
    its name, and the measured methods of RobustKD except ``both``.
    """
    cells = _counting(rows)
    if not cells:
        return _NONE_COUNTS
    head, names = _settings(cells)
    known = {row.method for members in cells.values() for row in members}
    methods = [
        name for name, method in METHODS.items() if method.ours and name != "both" and name in known
    ]
    lines = []
    for cell, members in cells.items():
        inheriting = max(
            (row for row in members if row.method in ordinary_students(members) and row.asr),
            key=lambda row: row.asr.mean if row.asr else 0,
        )
        others = [_find(members, method) for method in ("no-teacher", *methods)]
        clean, *robust = map(_figures, others)
        most = f"{_figures(inheriting)} ({inheriting.method})"
        counted = [inheriting, *(row for row in others if row is not None)]
        lines.append([*names[cell], clean, most, *robust, _counts(counted)])
    head += ["student, no teacher", "ordinary student with the highest ASR"]
    return _markdown([*head, *map(label_of, methods), "n"], lines, numbers=0)


def _counting(rows: Sequence[Row]) -> dict[Cell, list[Row]]:
    """Return the settings in which an ordinary student inherits the backdoor."""
    return {
        cell: members
        for cell, members in by_cell(rows).items()
        if inherited(members, ordinary_students(members))
    }


def ablation_table(rows: Sequence[Row]) -> str:
    """Markdown table of ACC / ASR without the defence, with each part alone, and with both parts.

    There is one line per setting in which an ordinary student inherits the backdoor and all of
    these methods were measured. The last line has the means. Without such a setting, the result is
    a sentence that says so.
    """
    cells = by_cell(rows)
    head, names = _settings(cells)
    whole: list[tuple[list[str], list[Row]]] = []
    for cell, members in cells.items():
        shown = [row for method in PARTS.values() if (row := _find(members, method)) is not None]
        if len(shown) == len(PARTS) and inherited(members, METHODS["both"].rivals):
            whole.append((names[cell], shown))
    if not whole:
        return _NONE_WHOLE
    lines = [[*name, *map(_figures, shown), _counts(shown)] for name, shown in whole]
    columns = list(zip(*(shown for _, shown in whole), strict=True))
    means = [
        f"{percent(fmean(row.acc.mean for row in column))} / "
        f"{percent(fmean(row.asr.mean for row in column if row.asr))}"
        for column in columns
    ]
    lines.append([*("" for _ in head[1:]), "mean", *means, ""])
    return _markdown([*head, *PARTS, "n"], lines, numbers=0)


def _settings(cells: Iterable[Cell]) -> tuple[list[str], dict[Cell, list[str]]]:
    """Headings of the columns that identify a cell, and the entries of each cell.

    Columns that are the same in all cells are left out. The attack is always the last column.
    """
    cells = list(cells)
    several = [i for i in range(2) if len({cell[i] for cell in cells}) > 1]
    head = [*(("Data", "Pair")[i] for i in several), "Attack"]
    return head, {cell: [*(cell[i] for i in several), cell.attack] for cell in cells}


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
    clean = _find(members, "no-teacher")
    if useless(members):
        return "useless teacher"
    if highest < INHERITED:
        return "control"
    if clean is not None and clean.asr is not None and highest - clean.asr.mean < _EXCESS:
        return "fools clean students"
    return _SURVIVES


def csv_table(rows: Sequence[Row]) -> str:
    """All results as CSV, one line per method and setting; values are fractions in [0, 1]."""
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
    """Return a name, preceded by a quotation mark if a spreadsheet would read it as a formula."""
    return f"'{name}" if name.lstrip().startswith(("=", "+", "-", "@")) else name


_PARTS = ("mean", "sd", "lowest", "highest")


def _parts(value: Statistic | None) -> list[str]:
    known = [getattr(value, part, None) for part in _PARTS]
    return ["" if part is None else f"{part:.6f}" for part in known]


def _figures(row: Row | None) -> str:
    return UNKNOWN if row is None else f"{percent(row.acc.mean)} / {spread(row.asr)}"


def _counts(members: Iterable[Row]) -> str:
    """Number of seeds, as the range from the fewest to the most."""
    seeds = [row.acc.n for row in members]
    return "-".join(str(n) for n in dict.fromkeys((min(seeds), max(seeds))))


def _base(members: Iterable[Row]) -> str:
    """Share of clean images that the student without a teacher sends to the target class."""
    row = _find(members, "no-teacher")
    return UNKNOWN if row is None or row.base is None else percent(row.base.mean)


def _find(members: Iterable[Row], method: str) -> Row | None:
    return next((row for row in members if row.method == method), None)


def _markdown(head: list[str], lines: list[list[str]], *, numbers: int) -> str:
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    escaped = [[markdown(text) for text in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *escaped])

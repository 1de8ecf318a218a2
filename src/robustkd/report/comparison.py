"""Tables and figure of a grid: which attacks survive distillation, and what each method achieves.

An attack counts for a method if an ordinary student with the same losses inherits the backdoor: its
attack success rate (ASR) is high, and clearly higher than that of a student without a teacher. The
other attacks are controls: they are listed, but excluded from every average.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from robustkd.core.methods import METHODS, label_of
from robustkd.report.aggregate import Cell, Row, Statistic, by_cell, place
from robustkd.report.summaries import find_row, inherited, ordinary_students, summaries, verdict
from robustkd.report.tables import UNKNOWN, markdown, percent, spread

PARTS: Mapping[str, str] = {
    "OFD": "ofd",
    "OFD, detoxified": "paper",
    "mix": "mix",
    "mix, hardened": "additions",
    "mix, both": "both",
}
"""Methods of the ablation table, by column heading: the losses and the parts that are switched on.
"""
_NONE_COUNTS = (
    "No attack counts: with none of them, an ordinary student has an ASR of at least 30 % "
    "and 20 points more than a student without a teacher.\n"
)
_NONE_COMPARED = (
    "No method can be compared: no defence was measured, with a seed that its ordinary students "
    "have as well, under an attack that one of them inherits.\n"
)
_NONE_WHOLE = (
    "No attack that an ordinary student inherits was measured with all of the methods "
    f"{', '.join(PARTS.values())}.\n"
)
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


def summary_table(rows: Sequence[Row]) -> str:
    """Markdown table with one line per pair and defended method, over the attacks that count.

    A method is compared with its ordinary students over the attacks and seeds that were measured
    with all of them. ``2 of 3`` stands for two attacks if the method was not measured with a third.
    """
    all_summaries = summaries(rows)
    if not all_summaries:
        return _NONE_COMPARED if _counting(rows) else _NONE_COUNTS
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
            _of(found.settings, found.counting),
            percent(found.ordinary_asr),
            percent(found.asr),
            percent(found.worst),
            percent(round(found.lost, 3) + 0.0),  # Adding 0.0 avoids "-0.0".
            percent(found.effectiveness),
        ]
        for found in all_summaries
    ]
    return _markdown(head, lines, numbers=6)


def _of(measured: int, counting: int) -> str:
    return str(counting) if measured == counting else f"{measured} of {counting}"


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
        shown = [_figures(find_row(members, method)) for method in methods]
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
        others = [find_row(members, method) for method in ("no-teacher", *methods)]
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
        shown = [row for method in PARTS.values() if (row := find_row(members, method)) is not None]
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
    row = find_row(members, "no-teacher")
    return UNKNOWN if row is None or row.base is None else percent(row.base.mean)


def _markdown(head: list[str], lines: list[list[str]], *, numbers: int) -> str:
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    escaped = [[markdown(text) for text in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *escaped])

"""Running a grid: existing results are kept, failures are recorded, and the rest continues."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from robustkd import report
from robustkd.benchmark.cache import Store
from robustkd.benchmark.cells import Cell
from robustkd.benchmark.executors import Executor
from robustkd.benchmark.grid_checks import check_cells
from robustkd.benchmark.records import check_subfolder, finished, gather, only_writer, runs_of
from robustkd.core.errors import UsageError
from robustkd.core.files import check_writable, make_folder, write_json, write_text
from robustkd.core.folders import Folder
from robustkd.report.results import Scalar, read_content, read_environment

_RESULTS = "results.json"
_OF_OTHERS = ("run.json", "train", "test", "val")
"""Names in the folder of a run or of images, where a grid would be out of place."""


class Counts(NamedTuple):
    """Numbers of cells with an earlier result, with a new result, and with a failure."""

    before: int
    done: int
    failed: int


def run_grid(
    cells: Sequence[Cell],
    out: Path,
    *,
    executor: Executor,
    cache: Path | None = None,
    tell: Callable[[str], None] = lambda _line: None,
) -> Counts:
    """Run every cell that has no result or has failed.

    Args:
        cells: The grid.
        out: Folder of the results; each cell has a file in ``cells/``.
        executor: Executor of groups of cells.
        cache: Folder of trained networks, shared by all processes; None for ``cache`` in ``out``.
        tell: Function that receives one line for each cell.

    Raises:
        UsageError: If cells that would be run do not fit their data, or ``out`` is the folder of a
            run or of images.
        InputError: If files of the data are missing or damaged, or a folder is refused.
    """
    # A link is refused by its own name, before a file behind it is read.
    if os.path.lexists(out / "cells"):
        check_subfolder(out, "cells")
    else:
        _check_no_other_files(out)
    missing = [cell for cell in cells if finished(cell, out) is None]
    check_cells(missing)
    # Links and folders that cannot be created are refused before hours of work.
    make_folder(out)
    check_subfolder(out, "cells")
    if cache is None:
        check_subfolder(out, "cache")
        cache = out / "cache"
    check_writable(make_folder(cache))
    Store(cache).clean()
    with only_writer(out):
        pass  # it removes what killed processes have left behind
    groups = [list(group) for _, group in groupby(missing, key=lambda cell: cell.teacher)]
    done = failed = 0
    for told in executor(groups, out, cache):
        for line, well in told:
            done, failed = done + well, failed + (not well)
            tell(line)
    return Counts(len(cells) - len(missing), done, failed)


class Tables(NamedTuple):
    """Rows of the written tables, and the names of the cells that are not in them."""

    rows: list[report.Row]
    failed: list[str]
    missing: list[str]


def common_environment(cells: Sequence[Mapping[str, Scalar]]) -> dict[str, Scalar]:
    """Return the environment of all cells; where they differ, every value is named.

    >>> common_environment([{"torch": "2.10", "cores": 2}, {"torch": "2.11", "cores": 2}])
    {'torch': '2.10, 2.11', 'cores': 2}
    """
    found: dict[str, Scalar] = {}
    for name in dict.fromkeys(name for cell in cells for name in cell):
        values = list(dict.fromkeys(cell[name] for cell in cells if name in cell))
        found[name] = values[0] if len(values) == 1 else ", ".join(map(str, values))
    return found


def _check_no_other_files(out: Path) -> None:
    """Check that a folder without cells has no file that the results of a grid would replace.

    Raises:
        UsageError: If it has one, or images.
    """
    try:
        known = sorted(set(os.listdir(out)) & {_RESULTS, *report.GRID_FILES, *_OF_OTHERS})
    except (FileNotFoundError, NotADirectoryError):  # the second is refused when it is made
        return
    if known:
        raise UsageError(f"{out} has {known[0]}, and is not the folder of a grid; give a new one")


def write_tables(cells: Sequence[Cell], out: Path) -> Tables:
    """Write ``results.json``, tables and the figure from the finished cells.

    Raises:
        UsageError: If no cell of the grid has a result.
        InputError: If the file of a cell is damaged; no file is written.
    """
    found, failed, missing = gather(cells, out)
    if not found:
        raise UsageError(f"{out} holds no result of this grid; run it without --tables-only")
    content = {
        "runs": [run for cell in found for run in runs_of(cell)],
        "environment": common_environment([read_environment(out, cell) for cell in found]),
        "config": {"cells": len(cells), "failed": failed, "missing": missing},
        "records": {},
    }
    # Nothing is replaced by results that a report would refuse.
    rows = report.aggregate(read_content(out / "cells", content).runs)
    with only_writer(out), Folder.at(out) as folder:
        folder.clean()
        write_json(out / _RESULTS, content)
        for name, text in report.grid_files(rows).items():
            write_text(out / name, text)
    return Tables(rows, failed, missing)

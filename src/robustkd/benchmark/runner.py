"""Running a grid: what is finished stays, what fails is written down, the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from robustkd import report
from robustkd.benchmark.cells import Cell
from robustkd.benchmark.executors import Executor
from robustkd.benchmark.records import check_subfolder, finished, gather
from robustkd.core.errors import UsageError
from robustkd.core.files import make_folder, write_json, write_text


class Counts(NamedTuple):
    """Cells of a grid that had their result before, that got it now, and that failed."""

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
    """Run every cell that has no result yet, those that failed among them.

    Args:
        cells: The grid.
        out: Folder of the results; ``cells/`` in it gets a file for each.
        executor: Runs groups of cells.
        cache: Folder of the networks, shared by everybody who works on the grid; ``cache`` in
            ``out`` when it is not given.
        tell: Gets one line for each cell.
    """
    make_folder(out)
    # Before hours of work, what is a link to another place or cannot be made is refused.
    check_subfolder(out, "cells")
    if cache is None:
        check_subfolder(out, "cache")
        cache = out / "cache"
    missing = [cell for cell in cells if finished(cell, out) is None]
    groups = [list(group) for _, group in groupby(missing, key=lambda cell: cell.teacher)]
    done = failed = 0
    for told in executor(groups, out, cache):
        for line, well in told:
            done, failed = done + well, failed + (not well)
            tell(line)
    return Counts(len(cells) - len(missing), done, failed)


def write_tables(cells: Sequence[Cell], out: Path) -> list[report.Row]:
    """Put the finished cells together: ``results.json``, tables and the figure.

    Raises:
        UsageError: If no cell of the grid has a result.
    """
    found, failed, missing = gather(cells, out)
    if not found:
        raise UsageError(f"{out} holds no result of this grid; run it without --tables-only")
    write_json(
        out / "results.json",
        {
            "runs": [content["run"] for content in found],
            "environment": found[0]["environment"],
            "config": {"cells": len(cells), "failed": failed, "missing": missing},
            "records": {},
        },
    )
    rows = report.aggregate(report.read(out).runs)
    for name, text in report.grid_files(rows).items():
        write_text(out / name, text)
    return rows

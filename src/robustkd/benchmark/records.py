"""Result files of cells: one JSON file per cell, for failed cells as well."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from robustkd.benchmark.cache import Store
from robustkd.benchmark.cells import Cell
from robustkd.benchmark.run_cell import NoTeacherError, run_cell
from robustkd.core.environment import environment
from robustkd.core.errors import InputError
from robustkd.core.folders import Folder, UnsafeError, refusal
from robustkd.report.results import read_environment, read_run

KILLED = "the process of its teacher's cells was killed, perhaps for lack of memory"
"""Error of the cells whose process was killed."""


class Told(NamedTuple):
    """A line about a finished cell, and whether it succeeded."""

    line: str
    well: bool


class Gathered(NamedTuple):
    """Results of the finished cells of a grid, in order, and names of the others."""

    found: list[dict[str, object]]
    failed: list[str]
    missing: list[str]


def run_group(cells: Iterable[Cell], out: Path, cache: Path) -> list[Told]:
    """Run the cells of one teacher sequentially."""
    return list(run_each(cells, out, cache))


def run_each(cells: Iterable[Cell], out: Path, cache: Path) -> Iterator[Told]:
    """Run the cells of one teacher, and write a result file for each, even if it fails.

    If the teacher cannot be made, all its cells fail.
    """
    no_teacher: dict[str, str] | None = None
    for cell in cells:
        try:
            if no_teacher is None:
                content = run_cell(cell, Store(cache))
            else:
                content = {**no_teacher, "cell": cell.configuration()}
        except Exception as error:
            cause = error.__cause__ if isinstance(error, NoTeacherError) else error
            told = {
                "error": f"{type(cause).__name__}: {cause}",
                "traceback": traceback.format_exc(),
            }
            if isinstance(error, NoTeacherError):
                no_teacher = told
            content = {**told, "cell": cell.configuration()}
        yield _write(cell, content, out)


def fail_group(cells: Iterable[Cell], out: Path, error: str) -> list[Told]:
    """Record a failure for all cells of a group that have no result file."""
    told = []
    for cell in cells:
        content = _read(cell, out)
        if content is None:
            told.append(_write(cell, {"error": error, "cell": cell.configuration()}, out))
        else:
            told.append(Told(_line(cell, content), "run" in content))
    return told


def tell_finished(cells: Iterable[Cell], out: Path) -> list[Told]:
    """Return a line for each cell of a group that has a result."""
    found = ((cell, finished(cell, out)) for cell in cells)
    return [Told(_line(cell, content), True) for cell, content in found if content is not None]


def _write(cell: Cell, content: dict[str, object], out: Path) -> Told:
    content.setdefault("environment", environment())
    with only_writer(out) as folder:
        folder.write(f"{cell.name}.json", json.dumps(content, indent=1) + "\n")
    return Told(_line(cell, content), "run" in content)


def finished(cell: Cell, out: Path) -> dict[str, object] | None:
    """Return the result of a cell; None if it has no result or has failed."""
    content = _read(cell, out)
    return content if content is not None and "run" in content else None


def gather(cells: Iterable[Cell], out: Path) -> Gathered:
    """Collect the results of a grid.

    Raises:
        InputError: If the result of a cell is damaged.
    """
    all_of_it = Gathered([], [], [])
    for cell in cells:
        content = _read(cell, out)
        if content is None:
            all_of_it.missing.append(cell.name)
        elif "run" in content:
            file = out / "cells" / f"{cell.name}.json"
            _check_runs(cell, file, content)
            read_environment(file, content)
            all_of_it.found.append(content)
        else:
            all_of_it.failed.append(cell.name)
    return all_of_it


def runs_of(content: Mapping[str, Any]) -> list[dict[str, object]]:
    """Return the runs of a cell in its file: one, or one for each trigger of the teacher."""
    return [content["run"], *content.get("others", [])]


def _check_runs(cell: Cell, file: Path, content: Mapping[str, object]) -> None:
    """Check the runs of a cell.

    Raises:
        InputError: If one is damaged, or there is not one for each trigger of the teacher.
    """
    others = content.get("others", [])
    if not isinstance(others, list):
        raise InputError(f"{file}: others is of type {type(others).__name__}; expected a list")
    read_run(file, "run", content["run"])
    for i, run in enumerate(others):
        read_run(file, f"others[{i}]", run)
    expected = len(cell.teacher.names) - 1
    if len(others) != expected:
        raise InputError(
            f"{file}: {len(others)} runs in others; expected {expected}, one for each further "
            "trigger of the teacher"
        )


@contextmanager
def only_writer(out: Path) -> Iterator[Folder]:
    """Open the folder of the result files, and lock it until the block ends.

    What killed processes have left in it is removed. All results are written under this lock, so
    nothing that is removed is in use, even if two grids have the same folder.

    Raises:
        InputError: If the folder or its lock is a link, or cannot be opened.
    """
    with ExitStack() as held:
        try:
            folder = held.enter_context(Folder.at(out))
            cells = held.enter_context(folder.inside("cells"))
            held.enter_context(cells.locked(seconds=math.inf))
            cells.clean()
        except OSError as error:
            raise refusal(out / "cells", error) from error
        yield cells


def check_subfolder(out: Path, name: str) -> None:
    """Create a folder in that of the results if it is missing.

    Raises:
        InputError: If it cannot be created or is a link.
    """
    try:
        with Folder.at(out) as folder:
            folder.inside(name, make=True).close()
    except OSError as error:
        raise refusal(out / name, error) from error


def _read(cell: Cell, out: Path) -> dict[str, object] | None:
    try:
        with Folder.at(out) as folder, folder.inside("cells") as cells:
            content = json.loads(cells.read(f"{cell.name}.json"))
    except FileNotFoundError:
        return None
    except UnsafeError as error:
        raise refusal(out / "cells" / f"{cell.name}.json", error) from error
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _line(cell: Cell, content: Mapping[str, Any]) -> str:
    setting = cell.teacher.setting
    what = f"{cell.teacher.names[0]:<15} {cell.method:<11} seed {setting.seed}"
    where = f"{setting.data}, {cell.pair}"
    if "run" not in content:
        return f"{what}  {where}  FAILED: {content['error']}"
    run = content["run"]
    rates = " and ".join(f"{each['asr']:6.1%}" for each in runs_of(content))
    figures = f"ACC {run['acc']:6.1%}  ASR {rates}  {run['seconds']:4.0f} s"
    return f"{what}  {figures}  {where}"

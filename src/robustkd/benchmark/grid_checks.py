"""Checks of the cells of a grid on their data, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

from robustkd.attacks import find
from robustkd.attacks.registry import check_accepts, check_targets
from robustkd.benchmark.cells import Cell, Setting, TeacherCell
from robustkd.benchmark.grid_words import naming
from robustkd.core.errors import UsageError
from robustkd.core.types import DataSource, Settings
from robustkd.data import open_source
from robustkd.models.trial import check_runs


def check_cells(cells: Iterable[Cell]) -> None:
    """Raise an error for cells that could only fail after hours of training.

    The data of the cells is opened. Sizes, target class and triggers must fit it, and every
    architecture is built and run once for its images, if possible without memory for the weights.

    Raises:
        UsageError: If a split has too few images, the target is no class or not one that the attack
            accepts, a trigger does not fit the images, or an architecture cannot be built for them
            or run on them.
        InputError: If files of the data are missing or damaged.
    """
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        setting = cell.teacher.setting
        key = (setting.path or setting.data, *sorted(setting.sizes.items()))
        groups.setdefault(key, []).append(cell)
    for group in groups.values():
        _check_on_data(group)


def _check_on_data(cells: Sequence[Cell]) -> None:
    """Check the cells of one data source."""
    setting = cells[0].teacher.setting
    source = _opened(setting)
    teachers = [cell.teacher for cell in cells]
    differing = {(each.attack, tuple(sorted(each.attacking.items()))): each for each in teachers}
    for each in differing.values():
        _check_trigger(each.attack, each.attacking, source)
    for each in teachers:
        _check_targets(each, source)
    named = {(cell.teacher.arch, cell.teacher.surrogate, cell.student) for cell in cells}
    for arch in sorted({arch for archs in named for arch in archs if arch is not None}):
        check_runs(arch, source, label="pairs: ")


def _opened(setting: Setting) -> DataSource:
    sizes = setting.sizes
    try:
        return open_source(setting.path or setting.data).subset(
            train=sizes.get("train"), validation=sizes.get("validation"), test=sizes.get("test")
        )
    except UsageError as error:
        raise UsageError(f"data: {error}") from error


def _check_trigger(name: str, settings: Settings, source: DataSource) -> None:
    with naming(name):
        find(name).try_trigger(settings, source.image_shape)


def _check_targets(teacher: TeacherCell, source: DataSource) -> None:
    """Check the targets of a teacher; the target of a grid with one trigger is not an attack's."""
    with naming(teacher.attack) if len(teacher.names) > 1 else nullcontext():
        check_accepts(teacher.attack, teacher.target, teacher.attacking)
        try:
            check_targets(teacher.target, teacher.attacking, source)
        except UsageError as error:
            raise UsageError(f"{error} for {teacher.setting.data}") from error

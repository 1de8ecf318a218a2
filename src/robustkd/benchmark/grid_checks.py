"""Checks of the cells of a grid on their data, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from robustkd.attacks.base import check_target
from robustkd.benchmark.cells import Cell, Setting
from robustkd.core.devices import without_values
from robustkd.core.errors import UsageError, first_line
from robustkd.core.types import DataSource
from robustkd.data import open_source
from robustkd.models import Spec, build


def check_cells(cells: Iterable[Cell]) -> None:
    """Raise an error for cells that could only fail after hours of training.

    The data of the cells is opened. Sizes and target class must fit it, and every architecture is
    built and run once for its images, if possible without memory for the weights.

    Raises:
        UsageError: If a split has too few images, the target is no class, or an architecture cannot
            be built for the images or run on them.
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
    for target in sorted({cell.teacher.target for cell in cells}):
        _check_target(target, source, setting.data)
    named = {(cell.teacher.arch, cell.teacher.surrogate, cell.student) for cell in cells}
    for arch in sorted({arch for archs in named for arch in archs if arch is not None}):
        _check_architecture(arch, source, setting.data)


def _opened(setting: Setting) -> DataSource:
    sizes = setting.sizes
    try:
        return open_source(setting.path or setting.data).subset(
            train=sizes.get("train"), validation=sizes.get("validation"), test=sizes.get("test")
        )
    except UsageError as error:
        raise UsageError(f"data: {error}") from error


def _check_target(target: int, source: DataSource, name: str) -> None:
    try:
        check_target(target, source)
    except UsageError as error:
        raise UsageError(f"{error} for {name}") from error


def _check_architecture(arch: str, source: DataSource, name: str) -> None:
    """Build a network for the images and run it, at first without memory for the values."""
    spec = Spec(arch, len(source.classes), source.image_shape)
    try:
        with without_values():
            _run(spec)
    except UsageError as error:
        raise UsageError(f"pairs: {arch!r} cannot be built for {name}: {error}") from error
    # Networks of libraries may need values of tensors while they are built or run.
    except Exception:
        try:
            _run(spec)
        except Exception as error:
            raise UsageError(
                f"pairs: {arch!r} cannot be run on the images of {name}, of shape "
                f"{source.image_shape}: {first_line(error)}"
            ) from error


def _run(spec: Spec) -> None:
    with torch.inference_mode():
        build(spec, seed=0).eval()(torch.zeros(1, *spec.image_shape))

"""Cells that cannot be trained are reported before any training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from robustkd.attacks import ATTACKS, BadNets, registry
from robustkd.attacks.data_poisoning import DirtyLabel
from robustkd.attacks.registry import AttackRow
from robustkd.benchmark import Cell, run_grid
from robustkd.benchmark.cells import Setting, TeacherCell
from robustkd.benchmark.executors import executor
from robustkd.benchmark.grid_checks import check_cells
from robustkd.core.errors import InputError, UsageError
from robustkd.core.files import write_json
from robustkd.core.triggers import apply_trigger
from robustkd.core.types import Trigger

SETTING = Setting("digits", {"train": 40})
TEACHER = TeacherCell(SETTING, "wrn-10-1", "badnets", {"epochs": 1})
CELL = Cell(TEACHER, "wrn-10-1", "kd")
WRN = "WRN depth is 11; expected 6 n + 4 with n >= 1: 10, 16, 22, 28, ..."
WRONG = [
    (replace(CELL, student="wrn-11-1"), f"pairs: 'wrn-11-1' cannot be built for digits: {WRN}"),
    (
        replace(CELL, teacher=replace(TEACHER, surrogate="wrn-11-1")),
        f"pairs: 'wrn-11-1' cannot be built for digits: {WRN}",
    ),
    (
        replace(CELL, student="torchvision/alexnet"),
        "pairs: 'torchvision/alexnet' cannot be run on the images of digits, of shape "
        "(1, 16, 16): Given input size: (192x1x1). Calculated output size: (192x0x0). Output "
        "size is too small",
    ),
    (
        replace(CELL, teacher=replace(TEACHER, target=10)),
        "target class is 10; expected 0 to 9 for digits",
    ),
    (
        replace(CELL, teacher=replace(TEACHER, attack="sig", target="next")),
        "target is next, and attack 'sig' has one target class; give its number, or use one of "
        f"{', '.join(name for name, row in ATTACKS.items() if row.next_class)}",
    ),
    (
        replace(
            CELL, teacher=replace(TEACHER, setting=replace(SETTING, sizes={"train": 99_999_999}))
        ),
        "data: train is 99999999; digits can give from 10 (one of each class) to 1200 images; "
        "choose a number in between",
    ),
    (
        replace(CELL, teacher=replace(TEACHER, attacking={"second": "blend", "second_target": 10})),
        "attacks.badnets: second_target: target class is 10; expected 0 to 9 for digits",
    ),
]


CONTROLS = ("badnets", "blend", "sig", "wanet")
"""Attacks whose triggers are not learned."""


def never(*_: object) -> None:
    raise AssertionError("a cell was run")


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_a_cell_that_cannot_be_trained_stops_the_grid_before_a_folder_is_made(
    wrong, message, tmp_path
):
    out = tmp_path / "out"
    with pytest.raises(UsageError) as error:
        run_grid([CELL, wrong], out, executor=never)
    assert str(error.value) == message
    assert not out.exists()


def test_a_cache_that_cannot_be_used_stops_the_grid(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match=f"^output folder {file} cannot be made: File exists$"):
        run_grid([CELL], tmp_path / "out", executor=never, cache=file)


def test_cells_that_have_a_result_are_not_checked(tmp_path):
    cell = replace(CELL, student="wrn-11-1")
    (tmp_path / "cells").mkdir()
    write_json(tmp_path / "cells" / f"{cell.name}.json", {"run": {}})
    assert run_grid([cell], tmp_path, executor=executor("local")) == (1, 0, 0)


@pytest.mark.parametrize("arch", ["timm/test_vit", "torchvision/shufflenet_v2_x0_5"])
def test_networks_of_libraries_are_built_for_the_images(arch):
    check_cells([replace(CELL, student=arch)])


def test_cells_of_one_class_and_of_the_next_one_are_checked_together():
    check_cells([CELL, replace(CELL, teacher=replace(TEACHER, target="next"))])


def test_data_is_opened_once(monkeypatch):
    import robustkd.benchmark.grid_checks as checks

    opened: list[str] = []
    plain = checks.open_source

    def counted(name: str) -> object:
        opened.append(name)
        return plain(name)

    monkeypatch.setattr(checks, "open_source", counted)
    check_cells([CELL, replace(CELL, student="wrn-16-1"), replace(CELL, method="ofd")])
    assert opened == ["digits"]


def test_the_folder_of_images_is_that_of_the_setting(tmp_path: Path):
    setting = replace(SETTING, path=str(tmp_path / "none"))
    cell = replace(CELL, teacher=replace(TEACHER, setting=setting))
    with pytest.raises(InputError, match=r"none is not a folder; expected one with images$"):
        check_cells([cell])


def test_a_trigger_that_does_not_fit_the_images_stops_the_grid(monkeypatch, tmp_path):
    row = AttackRow(DirtyLabel(BadNets(size=20)), "a patch that is larger than the images")
    monkeypatch.setitem(ATTACKS, "large", row)
    cell = replace(CELL, teacher=replace(TEACHER, attack="large"))
    with pytest.raises(UsageError, match=r"^attacks\.large: "):
        run_grid([CELL, cell], tmp_path / "out", executor=never)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(ATTACKS))
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32), (3, 24, 40)])
def test_triggers_whose_form_is_known_are_applied_to_one_image(name, shape, monkeypatch):
    applied = []

    def noted(trigger: Trigger, images: Tensor) -> Tensor:
        applied.append(tuple(images.shape))
        return apply_trigger(trigger, images)

    monkeypatch.setattr(registry, "apply_trigger", noted)
    ATTACKS[name].try_trigger({}, shape)
    known = name in CONTROLS or name.removeprefix("adaptive-") in registry.TRANSFORMATIONS
    assert applied == ([(1, *shape)] if known else [])

"""Defences in a grid: names, cells that share networks, and mistakes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from robustkd.benchmark import Cell, load_grid, run_cell
from robustkd.benchmark.cache import Store
from robustkd.benchmark.grid_methods import method_in_grid
from robustkd.core.errors import UsageError
from robustkd.report import summaries
from robustkd.report.aggregate import aggregate
from robustkd.report.results import ResultRow
from robustkd.teacher.defences.fine_tuning import FineTuning
from robustkd.teacher.defences.registry import DEFENCES
from robustkd.teacher.defences.tuning import Tuning

TEXT = """
data: {digits: {train: 100, validation: 40, test: 40}}
pairs: [[wrn-10-1, wrn-10-1]]
attacks: {badnets: {}}
methods:
  - kd
  - {defence: ft, on: teacher, losses: {kd: 1}}
  - {defence: ft, on: student, losses: {kd: 1.0}}
  - {defence: anp, method: default}
seeds: [0]
teaching: {epochs: 1, batch_size: 50}
training: {epochs: 1, batch_size: 50}
"""


def load(folder: Path, text: str = TEXT) -> list[Cell]:
    (folder / "grid.yaml").write_text(text)
    return load_grid(folder / "grid.yaml")


def test_a_defence_stands_beside_names(tmp_path):
    methods = [cell.method for cell in load(tmp_path)]
    assert methods == [
        "teacher",
        "kd",
        "teacher-ft+kd",
        "kd+student-ft",
        "teacher-anp+default",
    ]


def test_a_name_follows_from_the_settings_of_the_defence(tmp_path, monkeypatch):
    cells = load(tmp_path)
    before = [cell.name for cell in cells]
    other = replace(DEFENCES["ft"], defence=FineTuning(Tuning(epochs=7)))
    monkeypatch.setitem(DEFENCES, "ft", other)
    for cell, name in zip(cells, before, strict=True):
        assert (cell.name != name) == ("ft" in cell.method)


def test_cells_share_what_they_have_in_common(tmp_path, monkeypatch):
    short = FineTuning(Tuning(epochs=1, lr=0.05, batch_size=50))
    monkeypatch.setitem(DEFENCES, "ft", replace(DEFENCES["ft"], defence=short))
    _, plain, teacher, student, _ = load(tmp_path)
    store = Store(tmp_path / "cache")
    found = [run_cell(cell, store) for cell in (student, plain, teacher)]

    def kept() -> int:
        return sum(folder.is_dir() for folder in store.root.iterdir())

    # The attacked teacher, it cleaned, a student of each, and the first one's cleaned.
    assert kept() == 5
    assert "defence" not in found[1]["record"]
    assert [found[k]["record"]["defence"]["on"] for k in (0, 2)] == ["student", "teacher"]
    assert found[0]["run"]["seconds"] > found[1]["run"]["seconds"]
    ofd = replace(teacher, method="teacher-ft+ofd")
    run_cell(ofd, store)
    assert kept() == 6  # the cleaned teacher is there already


def test_a_table_compares_a_defence_with_its_ordinary_student():
    runs = [
        ResultRow("digits", "a to b", "x", method, 0, acc, asr, 0.5, 10, 1.0)
        for method, acc, asr in (("kd", 0.9, 0.8), ("teacher-ft+kd", 0.88, 0.2), ("bcu", 0.8, 0.1))
    ]
    bcu, ft = summaries(aggregate(runs))
    assert (bcu.method, bcu.ordinary_asr) == ("bcu", 0.8)
    assert (ft.method, ft.asr, round(ft.lost, 2)) == ("teacher-ft+kd", 0.2, 0.02)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"defence": "ftsam", "losses": {"kd": 1}}, "defence is 'ftsam'; did you mean 'ft-sam'?"),
        (
            {"defence": "ft", "on": "both", "losses": {"kd": 1}},
            "methods: on is 'both'; expected teacher or student",
        ),
        ({"defence": "ft"}, "methods: expected either losses or method beside a defence"),
        (
            {"defence": "ft", "losses": {"kdd": 1}},
            "unknown distillation loss 'kdd'; expected kd, ofd, at, fitnet, rkd",
        ),
        ({"defense": "ft"}, "methods: unknown key 'defense'; did you mean 'defence'?"),
        ({"losses": {"kd": 0}}, "methods: losses.kd is 0; expected more than 0"),
        ({"losses": {"kd": "1"}}, "methods: losses.kd is '1'; expected a number"),
        (
            {"losses": ["kd"]},
            "methods: losses is ['kd']; expected weights of losses by name, such as "
            "{kd: 1, ofd: 0.3}",
        ),
        (3, "methods: 3 is no method; expected a name or a mapping"),
    ],
)
def test_mistakes_are_reported_in_one_line(given, message, tmp_path):
    with pytest.raises(UsageError) as error:
        method_in_grid(given)
    assert str(error.value) == message
    text = yaml.safe_dump({**yaml.safe_load(TEXT), "methods": [given]})
    with pytest.raises(UsageError) as error:
        load(tmp_path, text)
    assert str(error.value) == f"{tmp_path / 'grid.yaml'}: {message}"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("yes: student", "methods: unknown key 'yes'; expected one of defence, on, losses, method"),
        (
            "on: student, true: teacher",
            "methods: the key True is not a string; expected defence, on, losses, method",
        ),
    ],
)
def test_the_key_on_is_not_read_as_a_boolean(key, message, tmp_path):
    text = TEXT.replace("on: student", key)
    with pytest.raises(UsageError) as error:
        load(tmp_path, text)
    assert str(error.value) == f"{tmp_path / 'grid.yaml'}: {message}"

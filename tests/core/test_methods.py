"""Every method combines existing parts, and a new method needs only one row."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import asdict, fields

import pytest
import torch

from robustkd import cli, report
from robustkd.core.errors import UsageError
from robustkd.core.method_settings import DetoxOptions, DetoxSettings, HardeningSettings, stated
from robustkd.core.methods import (
    ALIASES,
    METHODS,
    Method,
    find_method,
    label_of,
)
from robustkd.student.families import make_family
from robustkd.student.hardening import UniversalPerturbations
from robustkd.student.objective import check_weights
from robustkd.training.config import TrainingConfig, TrainingOptions


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_fits_the_parts(name):
    how = find_method(name)
    assert how is METHODS[name]
    assert how.summary
    assert "\n" not in how.summary
    check_weights(how.losses)
    assert how.detox is None or how.losses
    if how.hardening is not None:
        settings = asdict(how.hardening)
        for family in settings.pop("found"):
            make_family(family, 10, (1, 16, 16), torch.Generator())
        UniversalPerturbations(10, (1, 16, 16), **settings)
    json.dumps([dict(how.losses), stated(how.detox), stated(how.hardening)])
    assert all(not METHODS[rival].defended for rival in how.rivals)


def defaults(call) -> dict[str, object]:
    return {name: found.default for name, found in inspect.signature(call).parameters.items()}


def test_settings_have_the_defaults_of_what_they_set():
    own = defaults(UniversalPerturbations)
    set_by_method = asdict(HardeningSettings())
    assert set_by_method.pop("found") == ()
    assert {name: own[name] for name in set_by_method} == set_by_method
    assert set(set_by_method) == {f.name for f in fields(HardeningSettings)} - {"found"}


@pytest.mark.parametrize(
    ("options", "settings"),
    [(DetoxOptions, DetoxSettings), (TrainingOptions, TrainingConfig)],
)
def test_keyword_arguments_are_the_fields_of_their_settings(options, settings):
    kinds = {field.name: field.type for field in fields(settings)}
    assert {name: hint.__forward_arg__ for name, hint in options.__annotations__.items()} == kinds


def test_the_baselines_that_every_table_shows_are_there():
    assert set(METHODS) >= {"no-teacher", "ofd", "kd", "paper", "default"}
    assert not METHODS["no-teacher"].losses
    assert dict(METHODS["ofd"].losses) == {"ofd": 1.0}
    assert dict(METHODS["kd"].losses) == {"kd": 1.0}
    assert METHODS["paper"].detox
    assert METHODS["paper"].hardening is None
    assert METHODS["default"].hardening


def test_the_empty_default_cannot_be_filled_by_accident():
    with pytest.raises(TypeError, match="does not support item assignment"):
        Method("anything").losses["kd"] = 1.0


def test_stored_results_state_later_settings_only_where_they_differ():
    assert stated(None) is None
    first = {"epsilon": 0.2, "mass": 0.05, "share": 1.0, "distilled": False}
    assert stated(HardeningSettings()) == first
    assert stated(HardeningSettings(fade=0.5)) == first | {"fade": 0.5}
    assert stated(DetoxSettings(cap=0.2)) == {
        "cap": 0.2,
        "ratio": "position",
        "accuracy_budget": 0.02,
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("papers", "unknown method 'papers'; did you mean 'paper'?"),
        ("zzz", f"unknown method 'zzz'; expected one of {', '.join([*METHODS, *ALIASES])}"),
        ("", f"unknown method ''; expected one of {', '.join([*METHODS, *ALIASES])}"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(name, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        find_method(name)


@pytest.mark.parametrize("name", list(ALIASES))
def test_descriptive_names_mean_the_stored_ones(name):
    assert find_method(name) is METHODS[ALIASES[name]]


def test_a_new_method_is_one_row(monkeypatch, tmp_path, capsys):
    """It appears in the list of the command line, in grids, in tables and in the report."""
    from robustkd.benchmark import load_grid

    row = Method("an exercise", "RobustKD (exercise)", losses={"kd": 1.0}, rivals=("kd",))
    monkeypatch.setitem(METHODS, "exercise", row)
    cli.main(["list"])
    assert "an exercise" in capsys.readouterr().out
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "data: {digits: {}}\npairs: [[wrn-10-1, wrn-10-1]]\nattacks: {badnets: {}}\n"
        "methods: [kd, exercise]\nseeds: [0]\n"
    )
    assert {cell.method for cell in load_grid(grid)} == {"teacher", "kd", "exercise"}
    runs = [made_run("kd", 0.9), made_run("exercise", 0.1)]
    rows = report.aggregate(runs)
    assert [found.words for found in rows] == [label_of("kd"), "RobustKD (exercise)"]
    assert "RobustKD (exercise)" in report.markdown_table(rows)
    assert "10.0 %" in report.headline(rows)
    (summary,) = report.summaries(rows)
    assert (summary.method, summary.asr, summary.ordinary_asr) == ("exercise", 0.1, 0.9)


def made_run(method: str, asr: float) -> report.ResultRow:
    return report.ResultRow(
        data="digits",
        pair="a to b",
        attack="x",
        method=method,
        seed=0,
        acc=0.9,
        asr=asr,
        ra=0.5,
        params=10,
        seconds=1.0,
    )

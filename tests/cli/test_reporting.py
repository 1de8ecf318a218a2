"""``robustkd report``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustkd import cli
from tests.report.conftest import make_run


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    runs = [
        make_run(method=method, acc=acc, asr=None, ra=None, n_acc=500)
        for method, acc in (("teacher", 0.99), ("default", 0.8))
    ]
    (folder / "results.json").write_text(json.dumps({"runs": runs}))
    return folder


def said(capsys, *words: object) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    found = capsys.readouterr()
    return code, found.out, found.err


def test_the_files_are_written_and_the_headline_is_printed(run, capsys):
    code, out, err = said(capsys, "report", run)
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        f"Report: {run / 'report.html'}",
        f"Model card: {run / 'MODEL_CARD.md'}",
        f"Summary: {run / 'summary.md'}",
    ]
    assert " ".join(out.split("summary.md")[1].split()).startswith(
        "Large drop of accuracy: the RobustKD student has 80.0 % [76.3, 83.3] accuracy, the "
        "teacher 99.0 % [97.7, 99.6]: 19.0 points less [15.5, 22.8]"
    )
    assert sorted(path.name for path in run.iterdir()) == [
        *("MODEL_CARD.md", "report.html", "results.json", "summary.md")
    ]


def test_the_table_of_a_grid_is_not_overwritten(run, tmp_path, capsys):
    results = json.loads((run / "results.json").read_text())
    results["config"] = {"cells": 2, "failed": [], "missing": []}
    (run / "results.json").write_text(json.dumps(results))
    (run / "summary.md").write_text("table")
    code, _, err = said(capsys, "report", run)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"robustkd: {run} has the results of a grid, whose summary.md is its")
    assert (run / "summary.md").read_text() == "table"
    assert said(capsys, "report", run, "--out", tmp_path / "new")[0] == 0


def test_another_folder_can_be_given_and_the_run_is_not_changed(run, tmp_path, capsys):
    code, _, _ = said(capsys, "report", run, "--out", tmp_path / "new")
    assert code == 0
    assert [path.name for path in run.iterdir()] == ["results.json"]
    code, _, err = said(capsys, "report", run, "--out", run)
    assert code == 2
    assert err == f"robustkd: output folder {run} is not empty; give a new one with --out\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); give a run folder"),
        ("{", "not a JSON file (Expecting property name enclosed in double quotes: line 1 "),
        ('{"runs": []}', "runs is []; expected a list of at least one run"),
        ("records", "records.epochs is 3; expected a list"),
    ],
)
def test_damaged_results_end_with_one_line_and_code_3(run, capsys, content, message):
    path = run / "results.json"
    if content is None:
        path.unlink()
    elif content == "records":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"records": {"epochs": 3}}))
    else:
        path.write_text(content)
    code, out, err = said(capsys, "report", run)
    assert (code, out) == (3, "")
    assert err.startswith(f"robustkd: {path}: {message}")
    assert err.count("\n") == 1

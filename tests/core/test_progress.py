"""Progress bars of at most 80 columns, lines printed above them, and sparse lines in logs."""

from __future__ import annotations

import itertools
import re

import pytest

from robustkd.core import progress
from robustkd.core.progress import Update, track

FIGURES = {"loss": 12.3456, "acc": 0.87123, "ce": 1.0, "kd": 2.0, "ofd": 3.0, "harden": 4.0}


@pytest.fixture
def terminal(monkeypatch):
    """Standard error counts as a terminal of 80 columns."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")


def lines(text: str) -> list[str]:
    """What was drawn, one entry for each state of the bar."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line.rstrip() for line in re.split(r"[\r\n]", plain) if line.strip()]


@pytest.mark.parametrize("label", ["distil", "a label that is longer than any bar should have"])
def test_the_bar_fits_80_columns_with_percentage_values_and_time(label, terminal, capsys):
    with track(label, 4) as update:
        assert isinstance(update, Update)
        update(**FIGURES)
        update()
        update.progress.refresh()
    drawn = [line for line in lines(capsys.readouterr().err) if "loss" in line]
    assert drawn
    for line in drawn:
        assert len(line) <= 80
        assert "50 %" in line
        assert "loss 12.3 acc 0.871" in line
        assert "kd" not in line
        assert re.search(r"(\d\d|--):(\d\d|--)$", line)
        assert len(re.findall("[━╸╺]", line)) >= 10


def test_printed_lines_stay_above_the_bar_in_a_terminal(terminal, capsys):
    with track("distil", 2) as update:
        update(loss=1.0)
        update.line("distil: epoch 1 of 2, [red] is no colour")
    assert "distil: epoch 1 of 2, [red] is no colour" in lines(capsys.readouterr().err)


def test_a_log_gets_a_line_every_minute(monkeypatch, capsys):
    clock = itertools.count(0, 24)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with track("distil", 9) as update:
        for number in range(6):
            update(loss=1.0)
            update.line(f"epoch {number}")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "epoch 2\nepoch 5\n"


def test_a_short_training_writes_nothing_to_a_log(capsys):
    with track("distil", 1) as update:
        update(loss=1.0)
        update.line("epoch 1")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("widgets", [False, True])
def test_a_notebook_has_a_bar_only_with_ipywidgets(widgets, monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(progress, "find_spec", lambda _: object() if widgets else None)
    assert progress._Bar("distil", 2).progress.disable is not widgets

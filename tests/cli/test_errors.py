"""Errors are one line in a log; a terminal shows them wrapped, with the advice on its own line."""

from __future__ import annotations

import io
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from robustkd import cli
from robustkd.cli.app import print_error

MESSAGE = (
    "teacher teacher.pt: its outputs are not finite on the validation images of flowers; expected "
    "weights that were trained on such images; give the file that belongs to this architecture"
)


PLAIN = {"no_color": True, "highlight": False, "markup": False, "emoji": False}


def printed(message: str, *, terminal: bool) -> list[str]:
    out = io.StringIO()
    print_error(Console(file=out, force_terminal=terminal, width=60, **PLAIN), message)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_log_gets_one_line():
    assert printed(MESSAGE, terminal=False) == [f"robustkd: {MESSAGE}"]


def test_a_terminal_gets_lines_of_whole_words_and_the_advice_on_a_line_of_its_own():
    lines = printed(MESSAGE, terminal=True)
    assert all(len(line) <= 60 for line in lines)
    assert (
        " ".join(lines).split()
        == f"robustkd: {MESSAGE}".replace("images; give", "images give").split()
    )
    assert "  give the file that belongs to this architecture" in lines


@pytest.mark.parametrize("message", ["epochs is 0; expected at least 1", "interrupted"])
def test_the_expected_value_is_not_shown_as_advice(message):
    assert printed(message, terminal=True) == [f"robustkd: {message}"]


def test_no_control_character_reaches_the_terminal():
    (line,) = printed("cat\n\x1b[2J.png is no image", terminal=True)
    assert line == "robustkd: cat\\n\\x1b[2J.png is no image"


@pytest.mark.parametrize("mean", [["0.5,0.4,0.3"], ["0.5", "0.4", "0.3"], ["0.5, 0.4", "0.3"]])
def test_numbers_of_channels_may_be_separated_by_commas(mean, monkeypatch, capsys, tmp_path):
    seen = []
    monkeypatch.setattr(
        "robustkd.pipeline.dry_run.rehearse", lambda job, *_, **__: seen.append(job) or {}
    )
    command = ["distill", tmp_path / "t.pt", "--arch", "wrn-10-1", "--student", "wrn-10-1"]
    command += ["--data", "digits", "--dry-run", "--mean", *mean, "--std", "0.5"]
    cli.main(list(map(str, command)))
    assert seen[0].mean == (0.5, 0.4, 0.3)


def test_a_channel_value_that_is_not_a_number_is_named(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main(
            [
                "distill",
                str(tmp_path),
                "--arch",
                "x",
                "--data",
                "digits",
                "--student",
                "x",
                "--mean",
                "a",
            ]
        )
    assert stop.value.code == 2
    assert (
        "'a' is not a list of numbers; expected one number per channel" in capsys.readouterr().err
    )


def test_an_interrupt_while_modules_are_imported_ends_quietly():
    """The first tenths of a second of every command."""
    code = (
        "import runpy, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *others):\n"
        "        if name == 'cyclopts': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "runpy.run_module('robustkd', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "robustkd: interrupted\n")


def test_the_command_begins_where_an_interrupt_is_handled():
    content = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert content["project"]["scripts"] == {"robustkd": "robustkd.__main__:main"}

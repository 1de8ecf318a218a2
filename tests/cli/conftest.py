"""Running a command in this process, as all tests of commands do."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from robustkd import cli


class Said(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def robustkd(capsys, monkeypatch, tmp_path) -> Callable[..., Said]:
    """Runs a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Said(code, *capsys.readouterr())

    return run

"""Running a command in this process, as all tests of commands do, and files for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from robustkd import cli, data, models
from robustkd.attacks import BadNets, save_trigger
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

SMALL = data.load("digits", train=200, validation=20, test=20)


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


class Files(NamedTuple):
    """A teacher that is worth distilling, and what else a user may hold."""

    teacher: Path
    seven: Path
    trigger: Path
    far: Path


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    made = Files(*(folder / f"{name}.safetensors" for name in Files._fields))
    teacher = models.build(models.Spec("wrn-10-1", 10, (1, 16, 16)), seed=0)
    fit(Supervised(teacher), SMALL, epochs=4, batch_size=32)
    models.save(teacher, made.teacher)
    models.save(models.build(models.Spec("wrn-10-1", 7, (1, 16, 16)), seed=0), made.seven)
    save_trigger(BadNets(size=3), 0, made.trigger)
    save_trigger(BadNets(size=3), 10, made.far)
    return made

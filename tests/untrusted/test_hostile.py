"""Every hostile teacher file: exit code 3, one line, nothing done, little time and memory."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from unittest import mock

import pytest

from robustkd import cli
from robustkd.untrusted import sandbox
from untrusted.hostile import CASES
from untrusted.samples import text_pickle

MOST_SECONDS, MOST_MIB = 20, 320


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with an empty one for temporary files in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


def distil(teacher: Path) -> list[str]:
    options = ["--arch", "wrn-10-1", "--data", "digits", "--student", "wrn-10-1", "--out", "run"]
    return ["distill", str(teacher), *options, "--method", "no-teacher", "--epochs", "1"]


@pytest.mark.parametrize("name", CASES)
def test_hostile_files_end_in_one_line_and_nothing_else(name, folder, capsys):
    case = CASES[name]
    teacher, canary = folder / case.name, folder / "canary"
    case.make(teacher, canary)
    before = sorted(path.name for path in folder.iterdir())
    verdicts = []

    def watched(*arguments: object) -> sandbox.Verdict:
        verdicts.append(run(*arguments))
        return verdicts[-1]

    with case.around(teacher):
        run = sandbox.run
        with mock.patch.object(sandbox, "run", watched), pytest.raises(SystemExit) as ended:
            cli.main(distil(teacher))
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (3, "")
    assert err.startswith(f"robustkd: {teacher} ")
    assert case.says in err
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()
    assert len(err) < 600 + len(str(teacher))
    # No payload ran, no run began, nothing is left in quarantine.
    assert sorted(path.name for path in folder.iterdir()) == before
    assert not canary.exists()
    assert not list((folder / "tmp").glob("robustkd-*"))
    for verdict in verdicts:
        assert verdict.seconds < MOST_SECONDS
        assert verdict.peak_mib is None or 0 < verdict.peak_mib < MOST_MIB


def test_the_payloads_are_live_ones(tmp_path):
    """Unpickled, they do touch the canary."""
    pickle.loads(text_pickle(tmp_path / "canary"))  # noqa: S301 (our own bytes)
    assert os.listdir(tmp_path) == ["canary"]

"""File errors without a more specific message end in one line with exit code 3."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from robustkd.cli import main
from robustkd.core.errors import told

command = sys.modules["robustkd.cli.app"]

CASES = [
    (OSError(errno.ENOSPC, "x", "out/student"), "out/student: the disk is full; make room"),
    (OSError(errno.ENOMEM, "x"), "memory ran out; end other programs, or use a larger machine"),
    (OSError(errno.EMFILE, "x", "a"), "a: too many files are open; raise the limit (ulimit -n)"),
    (BlockingIOError(errno.EAGAIN, "x"), "no more processes can be started; raise the limit (ul"),
    (BrokenPipeError(errno.EPIPE, "x"), "the program that reads the output has ended"),
    (
        IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), "a\nb"),
        "a\\nb: Is a directory; check the path and its permissions",
    ),
    (OSError("odd"), "a file: odd; check the path and its permissions"),
    (MemoryError(), "memory ran out; use a smaller batch, image size or network, or a larger mac"),
    (RecursionError("x"), "something that was read is nested too deep; check your files"),
    (
        UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
        "a file or a name is not in UTF-8; convert or rename it",
    ),
]


@pytest.mark.parametrize(("error", "message"), CASES)
def test_file_errors_end_in_one_line_and_exit_code_3(error, message, monkeypatch, capsys):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(command, "app", fail)
    with pytest.raises(SystemExit) as stop:
        main(["list"])
    said = capsys.readouterr()
    assert (stop.value.code, said.out, said.err.count("\n")) == (3, "", 1)
    assert said.err.startswith(f"robustkd: {message}")


def test_a_file_name_in_bytes_is_left_out():
    error = OSError(errno.EIO, "Input/output error", b"\xff")
    assert told(error) == "a file: Input/output error; check the path and its permissions"


def test_an_internal_error_keeps_its_traceback(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a mistake of ours")

    monkeypatch.setattr(command, "app", fail)
    with pytest.raises(AssertionError, match="a mistake of ours"):
        main(["list"])


def test_a_file_that_cannot_be_opened_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "app", lambda *_, **__: Path(tmp_path / "none").read_bytes())
    with pytest.raises(SystemExit):
        main(["list"])
    assert f"{tmp_path / 'none'}: No such file" in capsys.readouterr().err

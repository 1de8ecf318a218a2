"""A short run of the mutation fuzzer has no findings, and every kind of finding is detected."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from tests.fuzz import readers
from tests.fuzz.readers import Kind, bytes_changed, fuzz, kinds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")


@pytest.mark.parametrize("name", kinds())
def test_a_short_run_finds_nothing(name):
    row = fuzz(name, kinds()[name], 60, seed=7)
    assert row["read"] + row["refused"] == 60
    assert row["findings"] == 0


def kept(content, folder, random):
    (folder / "a").write_bytes(content)
    (folder / "b").write_bytes(content)


def mapped(content, folder, random):
    bytearray(3 << 30)


def temporary(content, folder, random):
    (folder.parent / "tmp" / "x").touch()


ENDS = {
    "an exception": lambda *_: 1 // 0,
    "death": lambda *_: os.kill(os.getpid(), signal.SIGKILL),
    "too long": lambda *_: time.sleep(30),
    "too much memory": mapped,
    "a file beside the input": kept,
    "a temporary file": temporary,
}


@pytest.mark.parametrize("end", ENDS)
def test_each_kind_of_finding_is_seen(end, monkeypatch, capsys):
    monkeypatch.setattr(readers, "MOST_SECONDS", 1)
    row = fuzz("x", Kind([b"honest"], [bytes_changed], ENDS[end]), 1, seed=0)
    assert row["findings"] == 1
    assert "x 0: status " in capsys.readouterr().err

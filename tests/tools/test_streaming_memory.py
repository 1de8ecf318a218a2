"""A hundred times as many files take hardly more memory."""

from __future__ import annotations

import sys

import pytest

from tools.streaming_memory import streamed, write_many

MOST_MIB = 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_peak_memory_does_not_grow_with_the_number_of_files(tmp_path, workers):
    small = write_many(tmp_path / "small", 1000)
    few, many = (
        streamed(write_many(tmp_path / str(n), n), small, workers) for n in (2_000, 200_000)
    )
    assert (few["files"], many["files"], many["seen"]) == (2_000, 200_000, 160_000)
    for role in ("", "worker_"):
        grown = [run[f"{role or 'peak_'}mib"] - run[f"before_{role}mib"] for run in (few, many)]
        assert grown[1] - grown[0] < MOST_MIB

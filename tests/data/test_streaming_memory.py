"""A hundred times as many files take no more memory than the few tens of bytes of their names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from streaming_memory import write_many

SCRIPT = Path(__file__).with_name("streaming_memory.py")
MOST_BYTES_A_FILE = 200


def measured(folder: Path, n: int, workers: int) -> dict[str, float]:
    data = write_many(folder, n)
    write_many(folder / "small", 100).rename(folder / "tiny")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(data), str(workers)],
        capture_output=True,
        check=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_peak_memory_does_not_grow_with_the_number_of_files(tmp_path, workers):
    few, many = (measured(tmp_path / str(n), n, workers) for n in (2_000, 200_000))
    assert (few["files"], many["files"]) == (2_000, 200_000)
    assert many["seen"] == 160_000
    grown = (many["peak_mib"] - few["peak_mib"]) * 2**20
    assert grown < MOST_BYTES_A_FILE * (200_000 - 2_000)
    # Far below what the images take, or a list of their paths.
    assert many["peak_mib"] - few["peak_mib"] < 40
    assert many["worker_peak_mib"] - few["worker_peak_mib"] < 40

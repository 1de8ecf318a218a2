"""Measure how long the command takes to start: python -m tools.start benchmarks/results/start.json.

The teacher and the data are the smallest: a WRN-10-1 and the bundled digits. Each command is
started in turn, so that changes in the speed of the machine affect all alike, with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.kill_and_resume import flags, make_teacher

FIRST_STEP = """
import os, sys
from robustkd.cli import main
from robustkd.training import loop

def end(*_arguments):
    os._exit(0)

loop._Loop.advance = end
main(sys.argv[1:])
"""


def commands(work: Path) -> dict[str, list[str]]:
    """Return the arguments of Python for each row of the table."""
    distill = ["distill", *flags(work / "teacher.safetensors", 1), "--out"]
    mistyped = [*distill, str(work / "none"), "--student", "wrn-10-l"]
    return {
        "import torch": ["-c", "import torch"],
        "robustkd distill, until its first step": ["-c", FIRST_STEP, *distill],
        "robustkd distill with a mistyped student": ["-m", "robustkd.cli", *mistyped],
        "robustkd --help": ["-m", "robustkd.cli", "--help"],
    }


def seconds(command: list[str]) -> tuple[float, float]:
    """Run Python; return seconds of wall time and of processor time, with child processes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *command], env=environment, capture_output=True, check=False)
    wall, after = time.perf_counter() - started, os.times()
    user = after.children_user - before.children_user
    return wall, user + after.children_system - before.children_system


def main() -> None:
    """Run all commands in turn, and write the medians and the ranges."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=9, help="number of runs of each command")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_teacher(work / "teacher.safetensors")
        rows = commands(work)
        found: dict[str, list[tuple[float, float]]] = {row: [] for row in rows}
        for turn in range(chosen.repeats + 1):
            for row, command in rows.items():
                folder = [str(work / f"run-{turn}")] if command[-1] == "--out" else []
                taken = seconds([*command, *folder])
                if turn:  # the first run writes compiled modules
                    found[row].append(taken)
    content = [
        {"command": row, "wall_seconds": _range(wall), "CPU_seconds": _range(cpu), "n": len(cpu)}
        for row, taken in found.items()
        for wall, cpu in [tuple(zip(*taken, strict=True))]
    ]
    chosen.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _range(values: tuple[float, ...]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()

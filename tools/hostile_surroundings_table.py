"""Run commands on hostile run folders, data and other files, and record how each ends.

python -m tools.hostile_surroundings_table benchmarks/results/hostile/surroundings.json

One row per case: exit code, last line on standard error, seconds, and peak memory in MiB. Time and
memory are measured with Python, torch and this package already loaded; their memory is part of the
peak. Cases that already have a row in the file are not measured again; to measure all, remove the
file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from tests.hostile_surroundings import CASES, attempt, prepare


def main(out: Path) -> None:
    """Write one row per case, and stop at the first unexpected exit code or message."""
    torch.set_num_threads(1)  # a process that was forked cannot use the threads of its parent
    known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    rows = {row["case"]: row for row in known}
    with tempfile.TemporaryDirectory() as name:
        made = Path(name, "made")
        made.mkdir()
        prepare(made)
        for number, case in enumerate(CASES):
            if case.name in rows:
                continue
            folder = Path(name, str(number))
            folder.mkdir()
            ending = attempt(case, folder, made)
            if ending.code != case.code or case.says not in ending.message:
                raise SystemExit(f"{case.name}: {ending}")
            rows[case.name] = {
                "case": case.name,
                "exit_code": ending.code,
                "message": ending.message,
                "seconds": round(ending.seconds, 2),
                "peak_mib": round(ending.peak_mib),
            }
            # Also the rows of later cases, so that none is lost if this is interrupted.
            found = [rows[case.name] for case in CASES if case.name in rows]
            out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

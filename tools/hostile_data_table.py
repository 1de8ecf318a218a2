"""Measure `robustkd distill` on every hostile data folder, each in a process of its own.

python -m tools.hostile_data_table benchmarks/results/hostile/data.json

Rows of cases that are already in the file are kept; remove the file to measure all cases again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.data.images.hostile_folders import CASES, sound

FLAGS = ["--arch", "wrn-10-1", "--student", "wrn-10-1", "--data", "./data", "--out", "run"]


def measure(folder: Path, teacher: Path) -> tuple[int, str, float, float]:
    """Return exit code, last line on stderr, seconds and peak MiB of one run in ``folder``."""
    said = folder / "stderr"
    command = [sys.executable, "-m", "robustkd.cli", "distill", str(teacher), *FLAGS]
    command += ["--method", "no-teacher", "--epochs", "1", "--no-audit"]
    started = time.perf_counter()
    child = os.fork()
    if not child:
        os.chdir(folder)
        for number, path in ((1, folder / "stdout"), (2, said)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        os.execv(sys.executable, command)  # noqa: S606 (the interpreter that runs this script)
    _, status, used = os.wait4(child, 0)
    seconds = time.perf_counter() - started
    lines = [line for line in said.read_text().splitlines() if not line.startswith("teacher: ")]
    if len(lines) > 1:
        raise SystemExit(f"{folder}: more than one line:\n{said.read_text()}")
    message = (lines or [""])[0].replace(str(folder.resolve()), "")
    return os.waitstatus_to_exitcode(status), message, seconds, used.ru_maxrss / 1024


def train(work: Path) -> Path:
    """Train a teacher that distinguishes dark from light images.

    The training runs in a child process, because the peak memory of a process includes that of its
    parent, which therefore must not import torch.
    """
    path = work / "teacher.safetensors"
    child = os.fork()
    if not child:
        from robustkd import data, models
        from robustkd.training.learners import Supervised
        from robustkd.training.loop import fit

        model = models.build(models.Spec("wrn-10-1", 2, (3, 16, 16)), seed=0)
        fit(Supervised(model), data.load_folder(sound(work / "sound")), epochs=3, batch_size=16)
        models.save(model, path)
        os._exit(0)
    os.waitpid(child, 0)
    return path


def main(out: Path) -> None:
    """Write one row per case; stop at the first case with an unexpected exit code."""
    known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    kept = {row["case"]: row for row in known}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        teacher = train(work)
        for number, case in enumerate(CASES):
            title = f"data: {case.name}"
            if title in kept:
                rows.append(kept[title])
                continue
            folder = work / str(number)
            case.spoil(sound(folder / "data").resolve())
            code, message, seconds, peak = measure(folder, teacher)
            if code != (0 if case.message is None else 3):
                raise SystemExit(f"{case.name}: exit code {code}: {message}")
            rows.append(
                {
                    "case": title,
                    "exit_code": code,
                    "message": message,
                    "seconds": round(seconds, 2),
                    "peak_mib": round(peak),
                }
            )
            sys.stderr.write(f"{code} {seconds:5.1f} s {peak:5.0f} MiB  {case.name}\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

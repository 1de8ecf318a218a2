"""Kill `robustkd distill` at random moments, resume it, and compare the results.

python -m tools.kill_and_resume --kills 20 --seed 0 benchmarks/results/resume.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
COMMAND = [sys.executable, "-m", "robustkd.cli", "distill"]
COMPARED = ("student.safetensors", "metrics.jsonl")


@dataclass(frozen=True)
class Kill:
    """One run that was killed at least once and then resumed to its end.

    Attributes:
        after: Seconds from the creation of the folder, or from the resumption, to each kill.
        stood: State of the folder at each kill: finished epochs, and its newest file.
        identical: Whether student and metrics are those of the uninterrupted run.
    """

    after: tuple[float, ...]
    stood: tuple[str, ...]
    identical: bool


def make_teacher(path: Path) -> None:
    """Train a teacher on the digits."""
    from robustkd import data, models
    from robustkd.training.learners import Supervised
    from robustkd.training.loop import fit

    model = models.build(models.Spec("wrn-10-1", 10, (1, 16, 16)), seed=1)
    fit(Supervised(model), data.load("digits"), epochs=3)
    models.save(model, path)


def flags(teacher: Path, epochs: int) -> list[str]:
    """Return the flags of the command, without the folder."""
    named = {"arch": "wrn-10-1", "student": "wrn-10-1", "data": "digits", "seed": 3}
    named |= {"epochs": epochs, "batch-size": 32}
    return [
        str(teacher),
        *(part for name, value in named.items() for part in (f"--{name}", str(value))),
        "--no-audit",
    ]


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of all files that must not depend on interruptions."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in COMPARED}


def run(arguments: list[str]) -> float:
    """Run a command to its end, and return its seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        [*COMMAND, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{arguments} ended with {done.returncode}: {done.stderr}")
    return time.perf_counter() - started


def kill_after(arguments: list[str], folder: Path, seconds: float) -> bool:
    """Start a command, and kill it some time after its folder exists; return if it was running."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (folder / "config.yaml").exists() and process.poll() is None:
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def standing(folder: Path) -> str:
    """Describe the progress of a run from the content of its folder."""
    if not folder.is_dir():
        return "no folder"
    newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, default=folder)
    metrics = folder / "metrics.jsonl"
    epochs = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    return f"{epochs} epochs, {newest.name}"


def going_on(folder: Path, begin: list[str]) -> list[str]:
    """Return the arguments that resume a run, or those that start it if it has not started."""
    started = (folder / "config.yaml").exists()
    return ["--resume", str(folder)] if started else [*begin, "--out", str(folder)]


@dataclass(frozen=True)
class Alone:
    """An uninterrupted run.

    Attributes:
        begin: Arguments that start it, without the folder.
        folder: Folder of the run.
        before: Seconds until the folder existed.
        whole: Seconds until the end.
    """

    begin: list[str]
    folder: Path
    before: float
    whole: float


def undisturbed(begin: list[str], folder: Path) -> Alone:
    """Run a command to its end and measure it."""
    started = time.time()
    whole = run([*begin, "--out", str(folder)])
    return Alone(begin, folder, (folder / "config.yaml").stat().st_mtime - started, whole)


def kills(work: Path, alone: Alone, moments: list[list[float]]) -> Iterator[Kill]:
    """Kill a run at each list of moments: shares of the time between its folder and its end.

    Before the folder exists, there is nothing that could be damaged.
    """
    expected = digests(alone.folder)
    for number, shares in enumerate(moments):
        folder = work / f"killed-{number}"
        after, stood = [], []
        for share in shares:
            resumed = (folder / "config.yaml").exists()
            seconds = share * (alone.whole - alone.before) + (alone.before if resumed else 0.0)
            while not kill_after(going_on(folder, alone.begin), folder, seconds):
                # The run ended before the kill: repeat it with an earlier kill.
                shutil.rmtree(folder)
                after, stood, seconds = [], [], 0.7 * seconds
            after.append(round(seconds, 3))
            stood.append(standing(folder))
        run(going_on(folder, alone.begin))
        left = list(folder.rglob("*.partial"))
        identical = digests(folder) == expected and not left
        yield Kill(tuple(after), tuple(stood), identical)


def main() -> None:
    """Kill, resume, compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    draw = random.Random(chosen.seed)  # noqa: S311 (moments, no secrets)
    found: list[Kill] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_teacher(work / "teacher.safetensors")
        alone = undisturbed(flags(work / "teacher.safetensors", epochs=4), work / "alone")
        for kill in kills(work, alone, spread(chosen.kills, draw)):
            found.append(kill)
            sys.stderr.write(f"{kill}\n")
    content = {"seed": chosen.seed, "kills": [asdict(kill) for kill in found]}
    chosen.out.write_text(json.dumps(content, indent=1) + "\n")
    if not all(kill.identical for kill in found):
        raise SystemExit("not all students are identical")


def spread(count: int, draw: random.Random) -> list[list[float]]:
    """Draw one random moment in each of ``count`` equal parts of a run."""
    return [[(part + draw.random()) / count] for part in range(count)]


if __name__ == "__main__":
    main()

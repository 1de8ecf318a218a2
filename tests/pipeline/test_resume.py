"""Runs that were killed, interrupted or out of disk space are resumed with the same result."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustkd.training.checkpoint import load_state
from tools import kill_and_resume

EPOCHS = 3
SEED = 7


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    kill_and_resume.make_teacher(path)
    return path


@pytest.fixture(scope="module")
def alone(teacher, tmp_path_factory) -> kill_and_resume.Alone:
    folder = tmp_path_factory.mktemp("alone") / "run"
    return kill_and_resume.undisturbed(kill_and_resume.flags(teacher, EPOCHS), folder)


def process(arguments: list[object], cwd: Path) -> subprocess.Popen[str]:
    # A test run in the background hands on an ignored SIGINT, which a user's shell does not.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from robustkd.cli import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "distill", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=kill_and_resume.ENVIRONMENT,
    )


def wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not path.exists() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.05)


@pytest.mark.slow
def test_two_kills_of_one_run(alone, tmp_path):
    """The 20 of `test_twenty_kills` in small: the run that resumes it is killed as well."""
    draw = random.Random(SEED)  # noqa: S311 (moments, no secrets)
    moments = [[draw.uniform(0.2, 0.6) for _ in range(2)]]
    print(f"seed {SEED}")
    (kill,) = kill_and_resume.kills(tmp_path, alone, moments)
    print(kill)
    assert kill.identical


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    """As the command that wrote ``benchmarks/results/resume.json``, with another seed."""
    out = tmp_path / "resume.json"
    command = [sys.executable, kill_and_resume.__file__, str(out), "--kills", "20", "--seed", "1"]
    subprocess.run(command, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_exits_with_130_and_can_be_resumed(number, alone, tmp_path):
    interrupted = process([*alone.begin, "--out", "run"], tmp_path)
    try:
        wait_for(tmp_path / "run" / "metrics.jsonl", interrupted)
        interrupted.send_signal(number)
        out, err = interrupted.communicate(timeout=60)
    finally:
        interrupted.kill()
    assert (interrupted.returncode, out) == (130, "")
    fact, word = err.splitlines()
    assert fact.startswith("teacher: teacher.safetensors, safetensors, ")
    assert word == "robustkd: interrupted; resume with: robustkd distill --resume run"
    assert load_state(tmp_path / "run" / "checkpoint.safetensors").values["step"] > 0
    kill_and_resume.run(["--resume", str(tmp_path / "run")])
    assert kill_and_resume.digests(tmp_path / "run") == kill_and_resume.digests(alone.folder)


@pytest.fixture
def small_disk(tmp_path):
    """A disk with room for one checkpoint, and a function that makes it large."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(*options: str) -> bool:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", *options, "tmpfs", str(disk)], capture_output=True, check=False
        )
        return done.returncode == 0

    if os.geteuid() or not mount("-o", "size=1800k"):
        pytest.skip("mounting needs root")
    yield disk, lambda: mount("-o", "remount,size=32m")
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_reported_in_one_line_and_keeps_the_last_checkpoint(
    small_disk, alone, tmp_path
):
    disk, enlarge = small_disk
    folder = disk / "run"
    running = process([*alone.begin, "--out", folder], tmp_path)
    out, err = running.communicate(timeout=120)
    _, word = err.splitlines()
    assert word.startswith(f"robustkd: {folder / 'checkpoint.safetensors'} cannot be written: ")
    assert "No space left on device" in word
    assert word.endswith(f"; free some space, then resume with: robustkd distill --resume {folder}")
    assert (running.returncode, out) == (3, "")
    assert load_state(folder / "checkpoint.safetensors").values["epoch"] == 1
    assert not list(folder.rglob("*.partial"))
    assert enlarge()
    kill_and_resume.run(["--resume", str(folder)])
    assert kill_and_resume.digests(folder) == kill_and_resume.digests(alone.folder)

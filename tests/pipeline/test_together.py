"""Runs of several processes, which torchrun starts on this machine."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustkd import models
from tests.digits_network import write_network

pytestmark = pytest.mark.slow

COMMANDS = Path(sys.executable).parent
SHORT = ("--data", "digits", "--student", "wrn-10-1", "--arch", "wrn-10-1", "--no-audit")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return write_network(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


def torchrun(count: int, *words: object) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        *(str(COMMANDS / "torchrun"), "--nproc-per-node", str(count), "--master-port", str(port)),
        *("-m", "robustkd", *map(str, words)),
    ]


def run(count: int, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = torchrun(count, *words)
    if count == 1:
        command = [str(COMMANDS / "robustkd"), *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_write_one_run(teacher, tmp_path, count):
    words = ("distill", teacher, *SHORT, "--epochs", 2)
    alone, several = (run(n, *words, "--out", f"run-{n}", cwd=tmp_path) for n in (1, count))
    assert alone.returncode == several.returncode == 0, several.stderr
    assert several.stdout.count("Student:") == several.stderr.count("teacher: ") == 1
    found, expected = tmp_path / f"run-{count}", tmp_path / "run-1"
    assert {each.name for each in found.iterdir()} == {each.name for each in expected.iterdir()}
    assert models.load(found / "student.safetensors", arch="wrn-10-1")
    # In single precision, rounding moves the perturbations, which follow the sign of gradients.
    first = records(found)[0]
    assert first == pytest.approx(records(expected)[0], rel=0.03, abs=0.1)
    assert json.loads((found / "environment.json").read_text())["processes"] == count


def test_an_interrupted_run_is_resumed_by_another_number_of_processes(teacher, tmp_path):
    words = ("distill", teacher, *SHORT, "--epochs", 12, "--out", "run")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        torchrun(2, *words), cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as running:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 280
        while not (metrics.exists() or running.poll() is not None or time.monotonic() > deadline):
            time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=120)
    assert said.count("robustkd: interrupted; resume with: robustkd distill --resume run") == 1
    done = len(records(tmp_path / "run"))
    assert 1 <= done < 12
    resumed = run(3, "distill", "--resume", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert [record["epoch"] for record in records(tmp_path / "run")] == list(range(1, 13))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("list",), "robustkd: there are 2 processes; expected one for this command"),
        (
            ("distill", "no-such-file", *SHORT, "--method", "defualt", "--out", "run"),
            "robustkd: unknown method 'defualt'",
        ),
    ],
)
def test_an_error_of_all_processes_is_printed_once(tmp_path, words, expected):
    told = run(2, *words, cwd=tmp_path)
    assert told.returncode != 0
    assert told.stderr.count("robustkd: ") == told.stderr.count(expected) == 1


def test_methods_that_need_whole_batches_are_refused_before_the_run(teacher, tmp_path):
    told = run(2, "distill", teacher, *SHORT, "--method", "bcu", "--out", "run", cwd=tmp_path)
    assert told.stderr.count("robustkd: a defence within the distillation needs whole batches") == 1
    assert not (tmp_path / "run").exists()


def test_processes_with_other_settings_are_refused(teacher, tmp_path):
    words = ["distill", str(teacher), *SHORT, "--epochs", "1", "--out", "run"]
    command = [*torchrun(2)[:5], "--no-python", "sh", "-c"]
    own = shlex.join([sys.executable, "-m", "robustkd", *words]) + " --seed $RANK"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [*command, own],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode != 0
    assert "the processes of this run differ in their settings; expected the same" in told.stderr
    assert not (tmp_path / "run").exists()

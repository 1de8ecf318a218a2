"""A grid on a ray cluster of two nodes, while processes, nodes and the head are killed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from robustkd.benchmark import load_grid, ray_cluster
from robustkd.benchmark.executors import executor
from robustkd.benchmark.records import gather
from robustkd.core.errors import UsageError
from tests.benchmark.ray_nodes import Cluster, cluster, free_port, kill, until
from tests.benchmark.test_runner import ENVIRONMENT, SMOKE, tables

# Each teacher has two cells, which take a few seconds.
GRID = """
data: {digits: {train: 300, validation: 60, test: 120}}
pairs: [[wrn-10-1, wrn-10-1]]
attacks: {badnets: {}, blend: {}}
methods: [kd]
seeds: [0, 1]
teaching: {epochs: 10, batch_size: 64}
training: {epochs: 20, batch_size: 64}
"""
CELLS = 8


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "grid.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def whole(grid) -> dict[str, str]:
    """The tables of the grid as made by this machine in one piece."""
    done = bench(grid, grid.parent / "whole", ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return tables(grid.parent / "whole")


def command(grid: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "robustkd.cli", "bench", str(grid), "--out", str(out), *more]


def bench(
    grid: Path, out: Path, environment: dict[str, str], *more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(grid, out, *more),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@contextmanager
def running(grid: Path, out: Path, nodes: Cluster) -> Iterator[subprocess.Popen[str]]:
    """The command on the cluster, from when both nodes run cells and one cell is finished."""
    with subprocess.Popen(
        command(grid, out, "--executor", "ray"),
        env=nodes.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            until(lambda: results(out) and nodes.head.tasks() and nodes.second.tasks())
            yield process
        finally:
            process.kill()


def counts(grid: Path, out: Path) -> tuple[int, int]:
    """The numbers of finished cells and of others."""
    found = len(gather(load_grid(grid), out).found)
    return found, CELLS - found


def results(out: Path) -> dict[Path, int]:
    """When each finished cell was written."""
    return {file: file.stat().st_mtime_ns for file in (out / "cells").glob("*.json")}


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, told = process.communicate(timeout=300)
    assert "Traceback" not in told, told
    return process.returncode, told


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["process", "node"])
def test_killed_cells_run_again_on_another_node_and_finished_cells_are_kept(
    victim, grid, whole, tmp_path
):
    with cluster() as nodes, running(grid, tmp_path, nodes) as process:
        kept = results(tmp_path)
        victims = nodes.second.tasks()
        if victim == "process":
            kill(victims)
        else:
            nodes.second.kill()
        code, told = end(process)
    assert victims
    assert 0 < len(kept) < CELLS
    assert code == 0, told
    assert f"{CELLS} cells completed, 0 completed in earlier runs, 0 failed" in told
    assert len(results(tmp_path)) == CELLS
    assert {file: results(tmp_path)[file] for file in kept} == kept
    assert tables(tmp_path) == whole


@pytest.mark.slow
def test_a_cell_that_is_killed_repeatedly_fails_and_is_run_by_the_next_command(
    grid, whole, tmp_path
):
    with cluster() as nodes:
        with running(grid, tmp_path, nodes) as process:
            kept = results(tmp_path)
            while process.poll() is None:
                kill(nodes.head.tasks() | nodes.second.tasks())
            code, told = end(process)
        assert code == 1, told
        finished, failed = counts(grid, tmp_path)
        assert finished >= len(kept)
        assert f"{finished} cells completed, 0 completed in earlier runs, {failed} failed" in told
        assert (
            told.count("FAILED: the process of its teacher's cells was killed, perhaps") == failed
        )
        assert told.splitlines()[-1].startswith(f"robustkd: {failed} cells failed; see the errors")
        done = bench(grid, tmp_path, nodes.environment, "--executor", "ray")
    assert done.returncode == 0, done.stderr
    assert f"{failed} cells completed, {finished} completed in earlier runs, 0" in done.stderr
    assert {file: results(tmp_path)[file] for file in kept} == kept
    assert tables(tmp_path) == whole


@pytest.mark.slow
def test_without_its_head_the_command_ends_with_one_line_and_can_be_repeated(grid, whole, tmp_path):
    with cluster() as nodes, running(grid, tmp_path, nodes) as process:
        nodes.head.kill()
        code, told = end(process)
    assert code == 1
    line = (
        r"robustkd: the head of the ray cluster at \S+ no longer answers; start the cluster again "
        "and repeat the command, which keeps all finished cells"
    )
    assert re.fullmatch(line, told.splitlines()[-1]), told
    assert not list(tmp_path.glob(".robustkd-*"))
    kept, (finished, other) = results(tmp_path), counts(grid, tmp_path)
    assert 0 < finished == len(kept) < CELLS
    done = bench(grid, tmp_path, ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert f"{other} cells completed, {finished} completed in earlier runs, 0" in done.stderr
    assert {file: results(tmp_path)[file] for file in kept} == kept
    assert tables(tmp_path) == whole


def test_an_address_where_nothing_answers_is_refused_at_once(tmp_path, monkeypatch):
    address = f"127.0.0.1:{free_port()}"
    for prefix in ("", "ray://"):
        monkeypatch.setenv("RAY_ADDRESS", prefix + address)
        expected = (
            f"RAY_ADDRESS is '{prefix}{address}', where nothing answers; start the head of the "
            "cluster, or unset RAY_ADDRESS to use this machine alone"
        )
        with pytest.raises(UsageError, match=f"^{re.escape(expected)}$"):
            list(executor("ray")([load_grid(SMOKE)], tmp_path, tmp_path))
    # A grid that is finished needs no cluster.
    assert list(executor("ray")([], tmp_path, tmp_path)) == []


def test_an_invalid_address_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    message = (
        r"^the ray cluster \(RAY_ADDRESS is nonsense\) cannot be used: .*nonsense; check the "
        r"address, the token \(RAY_AUTH_TOKEN\), and that versions are the same$"
    )
    with pytest.raises(UsageError, match=message):
        list(executor("ray")([load_grid(SMOKE)], tmp_path, tmp_path))


def test_a_node_that_does_not_share_the_results_runs_nothing(tmp_path):
    message = (
        rf"^{re.escape(str(tmp_path))} is not shared by the node \S+; expected --out in a file "
        "system that all nodes of the cluster share$"
    )
    with pytest.raises(UsageError, match=message):
        ray_cluster._run_shared(pytest.fail, [], tmp_path, tmp_path, "mark")
    (tmp_path / "mark").mkdir()
    assert ray_cluster._run_shared(lambda *_: [], [], tmp_path, tmp_path, "mark") == []


MISSING = "No module named 'robustkd'"


@pytest.mark.parametrize(
    "cause",
    [
        ray.exceptions.RaySystemError(MISSING, f"where it was sought\n{MISSING}"),
        RuntimeError(f"The remote function failed to import on the worker:\n\n{MISSING}\n"),
    ],
    ids=["cells", "function"],
)
def test_a_node_without_the_package_is_reported_in_one_line(cause):
    error = ray_cluster._of_task(ray.exceptions.RayTaskError("f", "a traceback", cause))
    assert isinstance(error, UsageError)
    assert str(error) == (
        f"a node of the ray cluster cannot run cells: {MISSING}; install the same versions of "
        "robustkd and its packages on all nodes"
    )


def test_errors_of_cells_are_reported_unchanged():
    cause = UsageError("no")
    assert ray_cluster._of_task(ray.exceptions.RayTaskError("f", "a traceback", cause)) is cause

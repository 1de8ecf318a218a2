"""Running a grid: executors, killed processes, and cells that fail."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from itertools import chain
from multiprocessing import active_children, get_context
from pathlib import Path

import pytest
import ray

from robustkd import cli
from robustkd.benchmark import (
    Cell,
    executors,
    load_grid,
    ray_cluster,
    run_cell,
    run_grid,
    write_tables,
)
from robustkd.benchmark.cache import Store
from robustkd.benchmark.cells import TeacherCell
from robustkd.benchmark.executors import executor
from robustkd.benchmark.records import Told, gather, run_each
from robustkd.benchmark.run_cell import NoTeacherError
from robustkd.core.errors import InputError, TrainingError, UsageError
from robustkd.core.files import write_json
from robustkd.core.folders import Folder
from robustkd.data import load

SMOKE = Path(__file__).parents[2] / "benchmarks" / "smoke.yaml"
TABLES = ("headline.md", "attacks.md", "summary.md", "table.csv", "acc-asr.svg")
RUN = {
    **{"data": "digits", "pair": "wrn-10-2 to wrn-10-1", "attack": "badnets", "method": "teacher"},
    **{"seed": 0, "acc": 0.9, "asr": 0.1, "ra": 0.8, "params": 1000, "seconds": 1.0},
}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def bench(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "robustkd.cli", "bench", str(SMOKE), "--out", str(out), *more]


def tables(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in TABLES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The smoke grid, run by its command in one piece."""
    out = tmp_path_factory.mktemp("grid") / "whole"
    done = subprocess.run(bench(out), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "14 cells completed, 0 completed in earlier runs, 0 failed" in done.stderr
    return out


@pytest.mark.parametrize("name", ["results.json", "train"])
def test_a_folder_of_something_else_is_not_overwritten(name, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="is not the folder of a grid; give a new one"):
        run_grid(load_grid(SMOKE), tmp_path, executor=executor("local", workers=1))
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(["cache", name])


@pytest.mark.slow
def test_every_cell_has_a_result_and_every_table_every_method(whole):
    cells = load_grid(SMOKE)
    found, failed, missing = gather(cells, whole)
    assert (len(found), failed, missing) == (len(cells), [], [])
    assert len((whole / "table.csv").read_text().splitlines()) == 1 + len(cells)
    text = (whole / "attacks.md").read_text()
    assert text.count("\n") == 2 + 2
    for words in ("ordinary student (OFD)", "RobustKD (additions)"):
        assert words in text


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_tables(whole, tmp_path):
    done = subprocess.run(
        bench(tmp_path, "--executor", "ray"),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert tables(tmp_path) == tables(whole)


@pytest.mark.slow
def test_two_processes_give_the_same_tables(whole, tmp_path):
    done = subprocess.run(
        bench(tmp_path, "--workers", "2"),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert tables(tmp_path) == tables(whole)


@pytest.mark.slow
def test_a_killed_grid_is_continued_and_gives_the_same_tables(whole, tmp_path):
    folder = tmp_path / "cells"
    process = subprocess.Popen(bench(tmp_path), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(folder.glob("*.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    assert 4 <= len(kept) < 14
    done = subprocess.run(
        bench(tmp_path), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    counts = f"{14 - len(kept)} cells completed, {len(kept)} completed in earlier runs, 0 failed"
    assert counts in done.stderr
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert tables(tmp_path) == tables(whole)


@pytest.mark.slow
def test_all_processes_end_at_once_when_interrupted(tmp_path):
    folder = tmp_path / "cells"
    # A test run in the background hands on an ignored SIGINT, which a user's shell does not.
    heeding = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from robustkd import cli; cli.main()"
    )
    _, _, _, *arguments = bench(tmp_path, "--workers", "2")
    process = subprocess.Popen(
        [sys.executable, "-c", heeding, *arguments], env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while len(list(folder.glob("*.json"))) < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) != 0
    kept = len(list(folder.glob("*.json")))
    assert 1 <= kept < 14
    time.sleep(3)
    assert len(list(folder.glob("*.json"))) == kept  # no worker has gone on


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "ray"])
def test_a_killed_worker_is_recorded_and_stops_no_other(kind, tmp_path, monkeypatch):
    (tmp_path / "cells").mkdir()
    group, good = small(), small(attack="blend")[:1]
    for cell, content in zip(group, ({"run": RUN}, {"error": "TrainingError: no"}), strict=False):
        write_json(tmp_path / "cells" / f"{cell.name}.json", content)
    monkeypatch.setattr(ray_cluster if kind == "ray" else executors, "run_group", _die_of_badnets)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker can import it
    told = [*chain(*executor(kind, workers=2)([group, good, good], tmp_path, tmp_path))]
    assert [one.line for one in told].count("done") == 2
    ended, erred, killed = (one for one in told if one.line != "done")
    assert [ended.well, erred.well, killed.well] == [True, False, False]
    assert ended.line.startswith("badnets         teacher     seed 0  ACC  90.0%  ASR  10.0%")
    assert erred.line.endswith("FAILED: TrainingError: no")
    assert "FAILED: the process of its teacher's cells was killed, perhaps for lack" in killed.line
    assert gather(group, tmp_path).failed == [cell.name for cell in group[1:]]


@pytest.mark.slow
def test_ray_is_not_asked_for_more_cores_than_there_are(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (cell, *_) = small()
    many = replace(cell.teacher, setting=replace(cell.teacher.setting, threads=10_000))
    with pytest.raises(UsageError, match=r"^threads is 10000; expected at most \d+, the cores"):
        list(executor("ray")([[replace(cell, teacher=many)]], tmp_path, tmp_path))


@pytest.mark.slow
def test_a_grid_that_ends_early_ends_only_its_own_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "run_group", _sleep)
    others = set(active_children())  # of tests that ran before in this process
    ours = get_context("spawn").Process(target=time.sleep, args=(600,))
    ours.start()
    try:
        told = executor("local", workers=2)([[], small()[:1]], tmp_path, tmp_path)
        assert next(told) == []
        began = time.monotonic()
        told.close()
        assert time.monotonic() - began < 60
        assert ours.is_alive()
        assert set(active_children()) - others == {ours}
    finally:
        ours.kill()
        ours.join()


def _sleep(group: list[Cell], *_folders: object) -> list[object]:
    time.sleep(600 * len(group))
    return []


def _die_of_badnets(group: list[Cell], *_folders: object) -> list[Told]:
    if group[0].teacher.attack == "badnets":
        os.kill(os.getpid(), signal.SIGKILL)
    return [Told("done", well=True) for _ in group]


@pytest.mark.slow
def test_tables_can_be_made_again_from_the_cells(whole, capsys):
    before = tables(whole)
    for name in TABLES:
        (whole / name).unlink()
    cli.main(["bench", str(SMOKE), "--out", str(whole), "--tables-only"])
    assert tables(whole) == before
    assert "badnets" in capsys.readouterr().out


def test_tables_without_results_are_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no result of this grid; run it without"):
        write_tables(load_grid(SMOKE), tmp_path)


# Single cells.


def small(**change: object) -> list[Cell]:
    """The teacher and the ordinary student of the smoke grid's first attack."""
    cells = [cell for cell in load_grid(SMOKE) if cell.teacher.attack == "badnets"]
    return [replace(cell, teacher=replace(cell.teacher, **change)) for cell in cells][:3]


def test_a_failed_cell_is_recorded_and_stops_no_other(tmp_path):
    good, bad = small(), small(attacking={"epochs": 1, "lr": 1e30})
    told: list[str] = []
    counts = run_grid(
        [*bad[:2], *good[:2]],
        tmp_path,
        cache=tmp_path / "cache",
        executor=executor("local"),
        tell=told.append,
    )
    assert counts == (0, 2, 2)
    assert "FAILED: TrainingError: the training's loss is" in told[0]
    assert "FAILED: TrainingError: the training's loss is" in told[1]  # the teacher's student
    failed = gather(bad[:1], tmp_path).failed
    assert failed == [bad[0].name]
    again = run_grid(
        [*bad[:1], *good[:2]], tmp_path, cache=tmp_path / "cache", executor=executor("local")
    )
    assert again == (2, 0, 1)


def test_the_next_class_is_the_target_of_teachers_and_their_students(tmp_path):
    cells = small(target="next")
    assert run_grid(cells, tmp_path, executor=executor("local")) == (0, 3, 0)
    runs = [content["run"] for content in gather(cells, tmp_path).found]
    # Every test image counts; with one target class, those of this class do not.
    assert {run["n_asr"] for run in runs} == {run["n_acc"] for run in runs} == {120}
    rows = write_tables(cells, tmp_path).rows
    assert [row.method for row in rows] == [cell.method for cell in cells]


def test_each_trigger_of_a_teacher_has_rows_of_its_own(tmp_path):
    settings = small()[0].teacher.attacking
    cells = small(target=2, attacking={**settings, "second": "blend", "second_target": 5})
    told: list[str] = []
    counts = run_grid(cells, tmp_path, executor=executor("local"), tell=told.append)
    assert counts == (0, 3, 0)
    assert all(re.search(r"^badnets \(with blend\) .* ASR +\S+% and +\S+% ", line) for line in told)
    assert all(line.endswith(f"  digits, {cells[0].pair}") for line in told)
    found = gather(cells, tmp_path).found
    labels = load("digits", test=120).test.labels
    for content in found:
        (other,) = content["others"]
        assert content["run"]["acc"] == other["acc"]
        for run, target in ((content["run"], 2), (other, 5)):
            assert run["n_asr"] == int((labels != target).sum())
    names = ["badnets (with blend)", "blend (with badnets)"]
    rows = write_tables(cells, tmp_path).rows
    assert [(row.attack, row.method) for row in rows] == [
        (name, cell.method) for name in names for cell in cells
    ]
    assert all(name in (tmp_path / "attacks.md").read_text() for name in names)
    # A student without a teacher does not depend on the second trigger, even if trained anew.
    single = [cell for cell in small(target=2) if cell.method == "no-teacher"]
    assert run_grid(single, tmp_path / "single", executor=executor("local")) == (0, 1, 0)
    (alone,) = gather(single, tmp_path / "single").found
    both = next(content for content in found if content["run"]["method"] == "no-teacher")
    for name in ("acc", "asr", "ra"):
        assert alone["run"][name] == both["run"][name]
    assert run_grid(cells, tmp_path, executor=executor("local")) == (3, 0, 0)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({}, "others is of type dict; expected a list"),
        ([{"acc": 1}], "others[0] has no 'data'; every run needs it"),
    ],
)
def test_a_damaged_run_of_a_further_trigger_is_refused(others, message, tmp_path):
    (cell, *_) = small()
    content = {"run": RUN, "others": others}
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f"{cell.name}.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{re.escape(message)}$"):
        gather([cell], tmp_path)


@pytest.mark.parametrize(
    ("second", "others", "message"),
    [
        ({"second": "blend", "second_target": 5}, {}, "0 runs in others; expected 1"),
        ({"second": "blend", "second_target": 5}, {"others": [RUN, RUN]}, "2 runs in others; "),
        ({}, {"others": [RUN]}, "1 runs in others; expected 0"),
    ],
)
def test_a_file_without_a_run_for_each_trigger_is_refused(second, others, message, tmp_path):
    (cell, *_) = small(target=2, attacking={"epochs": 1, **second})
    (tmp_path / "cells").mkdir()
    write_json(tmp_path / "cells" / f"{cell.name}.json", {"run": RUN, **others})
    with pytest.raises(InputError, match=f"{re.escape(f'{cell.name}.json: {message}')}"):
        gather([cell], tmp_path)


def test_a_grid_whose_cells_all_fail_ends_with_one_line(tmp_path, monkeypatch, capsys):
    def broken(cell: Cell, store: Store) -> None:
        raise TrainingError("no")

    monkeypatch.setattr(import_module("robustkd.benchmark.records"), "run_cell", broken)
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", str(SMOKE), "--out", str(tmp_path)])
    assert stop.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"robustkd: all 14 cells failed; see the errors in their files in {tmp_path / 'cells'}"
    )


def test_a_teacher_that_fails_is_tried_once(tmp_path, monkeypatch):
    tried = []

    def broken(cell: TeacherCell, store: Store) -> None:
        tried.append(cell)
        raise TrainingError("no")

    monkeypatch.setattr(import_module("robustkd.benchmark.run_cell"), "make_teacher", broken)
    (tmp_path / "cells").mkdir()
    told = list(run_each(small(), tmp_path, tmp_path / "cache"))
    assert len(tried) == 1
    assert [one.well for one in told] == [False] * 3
    assert all("FAILED: TrainingError: no" in one.line for one in told)
    assert gather(small(), tmp_path).failed == [cell.name for cell in small()]


def test_an_unknown_argument_of_an_attack_is_refused(tmp_path):
    (cell, *_) = small(attacking={"epochs": 1, "colour": 3})
    with pytest.raises(NoTeacherError) as error:
        run_cell(cell, Store(tmp_path))
    assert str(error.value.__cause__) == "attack 'badnets' has no argument 'colour'"


@pytest.mark.slow
def test_teachers_and_the_student_without_a_teacher_are_made_once(whole):
    kept = [folder for folder in (whole / "cache").iterdir() if folder.is_dir()]
    # 2 teachers, 5 methods each, one student that met neither, and the clean teacher of ckd.
    assert len(kept) == 2 + 2 * 5 + 1 + 1


def test_a_cell_is_a_pure_function_of_its_configuration(tmp_path):
    cell = small()[2]
    one, other = (run_cell(cell, Store(tmp_path / name)) for name in "ab")
    for content in (one, other):
        del content["run"]["seconds"], content["environment"]
        content["record"].pop("seconds", None)
    assert one == other


@pytest.mark.parametrize("text", ["partial", "other"])
def test_a_store_makes_each_item_once_and_never_shows_incomplete_ones(tmp_path, text):
    store, made = Store(tmp_path), []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text(text)
        if len(made) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.fetch("key", make)
    assert not (tmp_path / "key").exists()
    folder = store.fetch("key", make)
    assert store.fetch("key", make) == folder == tmp_path / "key"
    assert len(made) == 2
    assert [file.name for file in folder.iterdir()] == ["file"]


def test_what_killed_processes_have_left_is_removed_unless_it_is_in_use(tmp_path):
    cells = small()[:1]
    (tmp_path / "cells").mkdir()
    store = Store(tmp_path / "cache")
    store.fetch("done", lambda folder: (folder / "file").write_text("kept"))
    for where, purpose in ((".", "file"), ("cells", "file"), ("cache", "old"), ("cache", "busy")):
        (tmp_path / where / f".robustkd-{purpose}-{'0' * 16}.partial").mkdir()
    with Folder.at(store.root) as cache, cache.locked("busy.lock", seconds=0.0):
        assert run_grid(cells, tmp_path, executor=executor("local")).done == 1
    write_tables(cells, tmp_path)
    left = [file.name for file in tmp_path.rglob("*.partial")]
    assert left == [f".robustkd-busy-{'0' * 16}.partial"]
    assert (store.root / "done" / "file").read_text() == "kept"


def test_an_unknown_executor_is_refused():
    with pytest.raises(UsageError, match=r"^executor is 'slurm'; expected local or ray$"):
        executor("slurm")


def test_without_the_extra_of_ray_the_command_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    message = (
        "the executor ray needs the package ray, which is not installed; "
        "pip install 'robustkd[ray]'"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        list(executor("ray")([], tmp_path, tmp_path))

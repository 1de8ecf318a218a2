"""Processes that decode images live through the passes, and end with the source."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from robustkd.core.errors import InputError
from robustkd.core.types import Batch
from robustkd.data import CropFlip, Pictures, Reading, load_folder
from robustkd.data.images.loader import _as_it_was
from tests.data.images.image_files import write_classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp("images"), {"a": 30, "b": 20})


@pytest.fixture
def data(folder) -> Pictures:
    gc.collect()
    assert not running()
    return load_folder(folder, Reading(workers=2, streaming=True))


def running() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def rows(data: Pictures, split: str = "train") -> list[int]:
    found = data.batches(split, batch_size=4)  # type: ignore[arg-type]
    return torch.cat([batch.rows for batch in found]).tolist()


def test_every_pass_is_served_by_the_same_processes(data):
    assert rows(data) == list(range(40))
    first = running()
    assert len(first) == 2
    assert rows(data, "validation") == list(range(5))
    assert rows(data) == list(range(40))
    assert rows(data.renamed("other")) == list(range(40))
    assert rows(data.with_augmentation(CropFlip(0, flip=False)), "test") == list(range(5))
    assert running() == first


def test_an_unfinished_pass_leaves_its_processes_to_the_next(data):
    batches = data.batches("train", batch_size=2)
    assert next(batches).rows.tolist() == [0, 1]
    first = running()
    del batches
    assert rows(data, "validation") == list(range(5))
    assert rows(data) == list(range(40))
    assert running() == first


def test_the_processes_end_with_the_source(folder):
    data = load_folder(folder, Reading(workers=2, streaming=True))
    batches = data.batches("train", batch_size=2)
    next(batches)
    assert len(running()) == 2
    del batches, data
    gc.collect()
    assert not running()


def test_passes_at_the_same_time_do_not_disturb_each_other(data):
    pairs = zip(
        data.batches("train", batch_size=4), data.batches("train", batch_size=4), strict=True
    )
    assert [(one.rows.tolist(), two.rows.tolist()) for one, two in pairs] == [
        (part, part) for part in (list(range(start, start + 4)) for start in range(0, 40, 4))
    ]
    assert len(running()) == 2  # those of the other pass have ended


def test_images_that_are_kept_in_memory_leave_no_processes(folder):
    data = load_folder(folder, Reading(workers=2, streaming=False))
    assert rows(data) == list(range(40))
    assert not running()


def test_another_number_of_processes_replaces_them(data):
    rows(data)
    first = running()
    decoding = data._decoding
    batches = list(decoding.decode("test", [torch.arange(5).numpy()], workers=1))
    assert batches[0].rows.tolist() == list(range(5))
    assert len(running()) == 1
    assert not running() & first


def test_a_source_of_other_images_has_its_own(data):
    rows(data)
    first = running()
    assert rows(data.subset(train=10)) == list(range(10))
    assert running() == first  # those of the subset have ended with it


def test_a_copy_starts_its_own(data):
    """As a process does that receives the source as an argument."""
    rows(data)
    first = running()
    copied = copy.copy(data._decoding)
    assert running() == first
    batches = list(copied.decode("test", [torch.arange(5).numpy()], workers=2))
    assert batches[0].rows.tolist() == list(range(5))
    assert len(running() - first) == 2


def read_elsewhere(data: Pictures, unfinished: Iterator[Batch], parents: set[int]) -> None:
    del unfinished
    good = rows(data) == list(range(40)) and not running() & parents
    del data
    gc.collect()
    sys.exit(0 if good else 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_leaves_them_to_its_parent(data):
    rows(data)
    unfinished = data.batches("train", batch_size=4)
    one = next(unfinished).rows.tolist()
    rows(data, "test")
    first = running()
    child = multiprocessing.get_context("fork").Process(
        target=read_elsewhere, args=(data, unfinished, first)
    )
    child.start()
    child.join()
    assert child.exitcode == 0
    del child
    assert running() == first
    assert one + [row for batch in unfinished for row in batch.rows.tolist()] == list(range(40))
    assert rows(data) == list(range(40))


FORKING = """
import multiprocessing, os, sys
from robustkd.data import Reading, load_folder

def rows(batches):
    return [row for batch in batches for row in batch.rows.tolist()]

def processes():
    return sorted(child.pid for child in multiprocessing.active_children())

multiprocessing.set_start_method("fork", force=True)
data = load_folder(sys.argv[1], Reading(workers=1, streaming=True))
unfinished = data.batches("train", batch_size=4)
read = next(unfinished).rows.tolist()
rows(data.batches("test", batch_size=4))
before = processes()
child = os.fork()
if child == 0:
    assert not processes()
    sys.exit(rows(data.batches("train", batch_size=4)) != list(range(40)))
print(os.waitpid(child, 0)[1], len(before), processes() == before)
print(read + rows(unfinished) == rows(data.batches("train", batch_size=4)) == list(range(40)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_of_os_fork_that_exits_leaves_them_to_its_parent(folder, tmp_path):
    (tmp_path / "script.py").write_text(FORKING)
    quiet = "ignore:This process:DeprecationWarning"  # of os.fork, from Python 3.12 on
    command = [sys.executable, "-W", quiet, str(tmp_path / "script.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0 2 True\nTrue\n", "")


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    while process in running():
        time.sleep(0.01)


def test_an_idle_process_that_the_system_killed_is_replaced(data):
    rows(data)
    first = running()
    kill(min(first))
    assert rows(data) == list(range(40))
    assert len(running()) == 2
    assert not running() & first


def test_the_death_of_a_process_is_an_error_of_the_pass(data):
    before = signal.getsignal(signal.SIGCHLD)
    batches = data.batches("train", batch_size=1)
    next(batches)
    kill(min(running()))  # PyTorch would raise the error here
    with pytest.raises(InputError, match=r"^a process that decodes images died"):
        list(batches)
    assert signal.getsignal(signal.SIGCHLD) == before
    assert rows(data) == list(range(40))


def test_an_interrupt_at_the_start_of_a_pass_keeps_what_happens_on_the_death_of_a_child():
    def start() -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)  # as PyTorch does
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(KeyboardInterrupt), _as_it_was():
        start()
    assert signal.getsignal(signal.SIGCHLD) == before


SCRIPT = """
import multiprocessing, sys
from robustkd.data import Reading, load_folder

if __name__ == "__main__":
    held = []
    for method in sys.argv[2:]:
        multiprocessing.set_start_method(method, force=True)
        data = load_folder(sys.argv[1], Reading(workers=1, streaming=True))
        before = set(multiprocessing.active_children())
        for _ in range(2):
            print(sum(len(batch.labels) for batch in data.batches("train", batch_size=4)))
            print(*(child.pid for child in set(multiprocessing.active_children()) - before))
        held += [data, data.batches("train", batch_size=4)]
    next(held[-1])
"""


def test_a_script_ends_quietly_though_it_still_holds_sources_and_a_pass(folder, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    known = multiprocessing.get_all_start_methods()
    methods = [method for method in ("fork", "spawn") if method in known]
    command = [sys.executable, str(tmp_path / "script.py"), str(folder), *methods]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 4 * len(methods)
    for first, pid, second, same_pid in zip(*[iter(lines)] * 4, strict=True):
        assert first == second == "40"
        assert pid == same_pid
        assert pid.isdigit()

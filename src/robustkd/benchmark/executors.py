"""Executors of grids: processes of this machine, or a ray cluster.

A group is the list of cells of one teacher. Both executors run the same function on each group and
yield its reports.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from robustkd.benchmark.cells import Cell
from robustkd.benchmark.ray_cluster import run_on_ray
from robustkd.benchmark.records import KILLED, Told, fail_group, run_each, run_group
from robustkd.core.allocator import keep_freed_memory
from robustkd.core.errors import UsageError
from robustkd.core.surroundings import safe_children

Executor: TypeAlias = Callable[[Sequence[Sequence[Cell]], Path, Path], Iterator[list[Told]]]
_WATCH_SECONDS = 0.5
Kind: TypeAlias = Literal["local", "ray"]


def executor(kind: str, *, workers: int = 1) -> Executor:
    """Return the executor of a name.

    Args:
        kind: ``local`` for processes on this machine. ``ray`` for a cluster: that of
            ``RAY_ADDRESS``, or else one that runs or is started on this machine.
        workers: Number of processes of ``local``; with 1, the cells run in the calling process.

    Raises:
        UsageError: If the name is unknown, or ray is not installed.
    """
    if kind == "local":
        return _one_by_one if workers == 1 else partial(_processes, workers)
    if kind == "ray":
        return run_on_ray
    raise UsageError(f"executor is {kind!r}; expected {' or '.join(get_args(Kind))}")


def _one_by_one(groups: Sequence[Sequence[Cell]], out: Path, cache: Path) -> Iterator[list[Told]]:
    for group in groups:
        for told in run_each(group, out, cache):
            yield [told]


def _processes(
    workers: int, groups: Sequence[Sequence[Cell]], out: Path, cache: Path
) -> Iterator[list[Told]]:
    """Run groups in one pool; after a worker is killed, run the rest in one pool per group."""
    from concurrent.futures.process import BrokenProcessPool

    left = dict(enumerate(groups))
    try:
        for number, told in _pool(workers, left, out, cache):
            del left[number]
            yield told
    except BrokenProcessPool:
        # Any of the running groups may be the cause, so each gets a pool of its own.
        for group in left.values():
            try:
                yield from (told for _, told in _pool(1, {0: group}, out, cache))
            except BrokenProcessPool:
                yield fail_group(group, out, KILLED)


def _pool(
    workers: int, groups: Mapping[int, Sequence[Cell]], out: Path, cache: Path
) -> Iterator[tuple[int, list[Told]]]:
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import active_children, get_context

    with safe_children():  # the pool starts processes at once and with the first tasks
        pool = ProcessPoolExecutor(
            workers,
            mp_context=get_context("spawn"),
            initializer=_begin_worker,
            initargs=(os.getpid(),),
        )
    others = set(active_children())  # processes of the caller
    try:
        with safe_children():
            tasks = {
                pool.submit(run_group, list(group), out, cache): number
                for number, group in groups.items()
            }
        for task in as_completed(tasks):
            yield tasks[task], task.result()
    except BaseException:
        for child in set(active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(parent: int) -> None:
    """Prepare a worker process, which ends when its parent has ended or was killed."""
    keep_freed_memory()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

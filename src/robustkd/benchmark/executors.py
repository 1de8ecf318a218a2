"""Who runs the groups of a grid: this machine's processes, or a ray cluster.

A group is the cells of one teacher. Both run the same function on it and give what it says.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from robustkd.benchmark.cells import Cell
from robustkd.benchmark.records import Told, run_each, run_group
from robustkd.errors import TrainingError, UsageError

Executor: TypeAlias = Callable[[Sequence[Sequence[Cell]], Path, Path], Iterator[list[Told]]]
_WATCH_SECONDS = 0.5
Kind: TypeAlias = Literal["local", "ray"]


def executor(kind: str, *, workers: int = 1) -> Executor:
    """The executor of that name.

    Args:
        kind: ``local`` for processes on this machine, ``ray`` for a cluster: the one that
            ``RAY_ADDRESS`` names, else one that is started here.
        workers: Processes of ``local``; with 1, the cells run in this very process.

    Raises:
        UsageError: If there is none, or ray is not installed.
    """
    if kind == "local":
        return _one_by_one if workers == 1 else partial(_processes, workers)
    if kind == "ray":
        return _ray
    raise UsageError(f"executor is {kind!r}; expected {' or '.join(get_args(Kind))}")


def _one_by_one(groups: Sequence[Sequence[Cell]], out: Path, cache: Path) -> Iterator[list[Told]]:
    for group in groups:
        for told in run_each(group, out, cache):
            yield [told]


def _processes(
    workers: int, groups: Sequence[Sequence[Cell]], out: Path, cache: Path
) -> Iterator[list[Told]]:
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import active_children, get_context

    pool = ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=_end_with,
        initargs=(os.getpid(),),
    )
    others = set(active_children())  # of the caller, and none of ours
    try:
        tasks = [pool.submit(run_group, list(group), out, cache) for group in groups]
        for task in as_completed(tasks):
            yield task.result()
    except BrokenProcessPool as error:
        raise TrainingError(
            "a worker process was killed, perhaps for want of memory; what is finished stays: "
            "run it again, with fewer --workers"
        ) from error
    except BaseException:
        for child in set(active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with(parent: int) -> None:
    """Let this process end when its parent is gone, killed or not: nobody waits for it then."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ray(groups: Sequence[Sequence[Cell]], out: Path, cache: Path) -> Iterator[list[Told]]:
    try:
        import ray
    except ImportError as error:
        raise UsageError("ray is not installed; pip install 'robustkd[ray]'") from error
    import torch

    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        remote = ray.remote(run_group)
        waiting = [
            remote.options(
                num_cpus=group[0].teacher.setting.threads,
                num_gpus=1 if torch.cuda.is_available() else 0,
            ).remote(list(group), out.resolve(), cache.resolve())
            for group in groups
        ]
        while waiting:
            ready, waiting = ray.wait(waiting)
            yield from ray.get(ready)
    finally:
        if ours:
            ray.shutdown()

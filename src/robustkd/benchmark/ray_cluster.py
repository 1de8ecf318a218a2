"""Executor of grids on a ray cluster, of which processes and nodes may end at any time."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from robustkd.benchmark.cells import Cell
from robustkd.benchmark.records import (
    KILLED,
    Told,
    fail_group,
    finished,
    run_group,
    tell_finished,
)
from robustkd.core.errors import TrainingError, UsageError
from robustkd.core.files import make_folder
from robustkd.core.folders import Folder
from robustkd.core.surroundings import elsewhere, safe_children
from robustkd.data.sources.download import DATA_VARIABLE

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.exceptions import RayTaskError

ADDRESS = "RAY_ADDRESS"
"""Environment variable with the address of a cluster."""

_HOST_AND_PORT = re.compile(r"(?:ray://)?\[?(?P<host>[^/\[\]]+)\]?:(?P<port>\d{1,5})")
_ANSWER_SECONDS = 5
_CHECK_SECONDS = 5
# After 60 seconds without a head, ray itself ends the calling process, without results or a reason.
_HEAD_SECONDS = 25


def run_on_ray(groups: Sequence[Sequence[Cell]], out: Path, cache: Path) -> Iterator[list[Told]]:
    """Run groups of cells on the nodes of a ray cluster, as an executor.

    A group whose process or node was killed is run once more, without its finished cells. If it is
    killed again, or was killed for lack of memory, its other cells fail.

    Raises:
        UsageError: If ray is not installed, the cluster cannot be used, a cell needs more cores
            than a local cluster has, or a node does not share the folder of the results.
        TrainingError: If the head of the cluster has ended.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "the executor ray needs the package ray, which is not installed; "
            "pip install 'robustkd[ray]'"
        ) from error

    if not groups:
        return
    ours = not ray.is_initialized()
    if ours:
        _connect()
    try:
        if ours and not os.environ.get(ADDRESS):
            _check_cores(groups)
        with _marked(out) as marker:
            yield from _run(groups, out.resolve(), cache.resolve(), marker)
    except ConnectionError as error:  # of a connection by ray://
        raise _head_has_ended(os.environ.get(ADDRESS, "its address")) from error
    finally:
        if ours:
            ray.shutdown()


def _connect() -> None:
    """Connect to the cluster of ``RAY_ADDRESS``, or else to a local one, which may be started."""
    import ray

    address = os.environ.get(ADDRESS)
    place = _HOST_AND_PORT.fullmatch(address or "")
    if place is not None and not _answers(place["host"], int(place["port"])):
        raise UsageError(
            f"{ADDRESS} is {address!r}, where nothing answers; start the head of the cluster, or "
            f"unset {ADDRESS} to use this machine alone"
        )
    data = os.environ.get(DATA_VARIABLE)
    told = {"env_vars": {DATA_VARIABLE: os.path.abspath(data)}} if data else None
    try:
        # The processes of ray import modules from the directory in which ray is started.
        with safe_children(), elsewhere():
            ray.init(log_to_driver=False, include_dashboard=False, runtime_env=told)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UsageError(
            f"the ray cluster ({ADDRESS} is {address or 'not set'}) cannot be used: "
            f"{_lines(error)[0].rstrip('.')}; "
            "check the address, the token (RAY_AUTH_TOKEN), and that versions are the same"
        ) from error


def _answers(host: str, port: int) -> bool:
    """Return whether a TCP connection can be made."""
    try:
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def _check_cores(groups: Sequence[Sequence[Cell]]) -> None:
    """Refuse more threads than a local cluster has; a cluster with an address may grow."""
    cores = max(node.get("CPU", 0) for node in _resources())
    needed = max(group[0].teacher.setting.threads for group in groups)
    if needed > cores:
        raise UsageError(
            f"threads is {needed}; expected at most {cores:.0f}, the cores that ray has here"
        )


def _resources() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def _marked(out: Path) -> Iterator[str]:
    """Yield the name of an empty folder in ``out``, by which a node knows that it shares it."""
    with Folder.at(make_folder(out)) as folder:
        marker = folder.private("ray")
        try:
            yield marker
        finally:
            shutil.rmtree(marker, ignore_errors=True, dir_fd=folder.descriptor)


def _run(
    groups: Sequence[Sequence[Cell]], out: Path, cache: Path, marker: str
) -> Iterator[list[Told]]:
    import ray

    gpus = 1 if any(node.get("GPU", 0) >= 1 for node in _resources()) else 0
    remote = ray.remote(_run_shared)

    def start(group: Sequence[Cell]) -> ObjectRef[list[Told]]:
        # A task that needs too much memory would be retried forever by ray.
        options = {"num_cpus": group[0].teacher.setting.threads, "num_gpus": gpus, "max_retries": 0}
        task: ObjectRef[list[Told]] = remote.options(**options).remote(
            run_group, list(group), out, cache, marker
        )
        return task

    running = {start(group): group for group in groups}
    repeated: set[ObjectRef[list[Told]]] = set()
    head = _Head()
    while running:
        found, _ = ray.wait(list(running), timeout=_CHECK_SECONDS)
        if not found:
            head.check()
            continue
        (task,) = found
        group = running.pop(task)
        try:
            yield ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise _of_task(error) from error
        except ray.exceptions.RayError as error:
            rest = [cell for cell in group if finished(cell, out) is None]
            if task in repeated or isinstance(error, ray.exceptions.OutOfMemoryError) or not rest:
                yield fail_group(group, out, _reason(error))
            else:
                yield tell_finished(group, out)
                again = start(rest)
                running[again] = rest
                repeated.add(again)


def _run_shared(
    run: Callable[[list[Cell], Path, Path], list[Told]],
    group: list[Cell],
    out: Path,
    cache: Path,
    marker: str,
) -> list[Told]:
    """Run a group on a node, unless the node has another folder in the place of ``out``."""
    if not (out / marker).is_dir():
        raise UsageError(
            f"{out} is not shared by the node {socket.gethostname()}; expected --out in a file "
            "system that all nodes of the cluster share"
        )
    return run(group, out, cache)


def _of_task(error: RayTaskError) -> BaseException:
    """Return what a task raised; if a node could not even begin it, what is missing there."""
    import ray

    cause: BaseException = error.cause or error
    not_begun = "function failed to import" in str(cause)
    if not_begun or isinstance(error.cause, ray.exceptions.RayError):
        return UsageError(
            f"a node of the ray cluster cannot run cells: {_lines(cause)[-1]}; install the same "
            "versions of robustkd and its packages on all nodes"
        )
    return cause


def _lines(error: BaseException) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]


def _reason(error: Exception) -> str:
    kind = type(error).__name__
    if kind == "NodeDiedError":
        return f"the node of its teacher's cells has ended ({kind})"
    if kind in ("WorkerCrashedError", "OutOfMemoryError"):
        return f"{KILLED} ({kind})"
    return f"ray lost its teacher's cells ({kind}: {_lines(error)[0]})"


class _Head:
    """The head of the cluster, without which tasks neither start nor end."""

    def __init__(self) -> None:
        import ray

        # A client (ray://) has no connection to the head, and is told if its own is lost.
        client = ray.util.client.ray.is_connected()
        self.address = None if client else str(ray.get_runtime_context().gcs_address)
        self.silent_since: float | None = None

    def check(self) -> None:
        """Raise a TrainingError if the head has not answered for a while."""
        if self.address is None:
            return
        host, _, port = self.address.rpartition(":")
        if _answers(host.strip("[]"), int(port)):
            self.silent_since = None
        elif self.silent_since is None:
            self.silent_since = time.monotonic()
        elif time.monotonic() - self.silent_since > _HEAD_SECONDS:
            raise _head_has_ended(self.address)


def _head_has_ended(address: str) -> TrainingError:
    return TrainingError(
        f"the head of the ray cluster at {address} no longer answers; start the cluster again and "
        "repeat the command, which keeps all finished cells"
    )

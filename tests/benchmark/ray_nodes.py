"""Nodes of a ray cluster as processes of this machine, which a test can kill."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import robustkd

TASK = "ray::_run_shared"
"""Title of a process of ray while it runs cells."""


def free_port() -> int:
    """Return a port of the loopback device at which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(condition: Callable[[], object], *, seconds: float = 120) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def processes() -> dict[int, tuple[int, str]]:
    """Return the parent and the command line of every process, by its number."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return {int(number): (int(parent), " ".join(title)) for number, parent, *title in rows}


def family(ancestor: int) -> dict[int, str]:
    """Return the command lines of a process and of all that it has started, by their number."""
    every = processes()
    found = {ancestor: every[ancestor][1]} if ancestor in every else {}
    before = 0
    while before < len(found):
        before = len(found)
        found |= {number: title for number, (parent, title) in every.items() if parent in found}
    return found


def kill(victims: dict[int, str]) -> None:
    """Kill processes at once, so that none can end in an orderly way."""
    for number in victims:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


@dataclass(frozen=True)
class Node:
    """A node of a cluster: ``ray start --block`` and all that it has started."""

    process: subprocess.Popen[bytes]

    def tasks(self) -> dict[int, str]:
        """Return the processes that run cells."""
        every = family(self.process.pid)
        return {number: title for number, title in every.items() if title.startswith(TASK)}

    def kill(self) -> None:
        """Kill the node as a power failure would do."""
        kill(family(self.process.pid))
        self.process.wait()

    def stop(self) -> None:
        """End the node in an orderly way; kill what is left of it."""
        every = family(self.process.pid)
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=20)
        same = {number: title for number, (_, title) in processes().items()}.items()
        kill(dict(every.items() & same))
        self.process.wait()


@dataclass(frozen=True)
class Cluster:
    """Two nodes with one core each, and the environment in which a command uses them."""

    head: Node
    second: Node
    environment: dict[str, str]


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a head and a second node, with a secret token and ports of their own."""
    with ExitStack() as held:
        # The names of sockets are limited to about 100 characters, too few for pytest's folders.
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="ray-")))
        address = f"127.0.0.1:{free_port()}"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(robustkd.__file__).parents[1]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
        }
        environment.pop("RAY_ADDRESS", None)
        head = [
            *("--head", "--port", address.rpartition(":")[2], "--temp-dir", str(folder / "r")),
            *("--include-dashboard", "false", "--dashboard-port", str(free_port())),
            *("--ray-client-server-port", str(free_port())),
        ]
        nodes = []
        for name, where in (("head", head), ("second", ["--address", address])):
            nodes.append(_start(where, folder / f"{name}.log", environment))
            held.callback(nodes[-1].stop)
        yield Cluster(*nodes, {**environment, "RAY_ADDRESS": address})


def _start(where: list[str], log: Path, environment: dict[str, str]) -> Node:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *where, "--block"]
    size = ["--num-cpus", "1", "--num-gpus", "0", "--object-store-memory", "80000000"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *size, "--node-ip-address", "127.0.0.1", "--disable-usage-stats"],
            cwd=log.parent,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    until(lambda: process.poll() is not None or "Ray runtime started" in log.read_text())
    assert process.poll() is None, log.read_text()
    return Node(process)

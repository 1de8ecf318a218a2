"""How the process was started: alone, or as one of several by torchrun."""

from __future__ import annotations

import os
from dataclasses import dataclass

from robustkd.core.errors import UsageError


@dataclass(frozen=True)
class Launched:
    """Place of this process among those that torchrun has started.

    Attributes:
        rank: Number of the process, from 0; the first one writes files and messages.
        count: Number of processes, on all machines.
        local: Number of the process on this machine, from 0.
        here: Number of processes on this machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    here: int = 1

    @property
    def several(self) -> bool:
        """Whether there are several processes."""
        return self.count > 1


def launched() -> Launched:
    """Read the environment variables of torchrun.

    Raises:
        UsageError: If one is not a number, or is out of range.
    """
    # Other programs set WORLD_SIZE alone; torchrun also sets the address of the first process.
    count = _number("WORLD_SIZE", 1) if {"RANK", "MASTER_ADDR"} <= set(os.environ) else 1
    if count <= 1:
        return Launched()
    found = Launched(
        _number("RANK", 0), count, _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)
    )
    if not (0 <= found.rank < count and 0 <= found.local < found.here <= count):
        raise UsageError(
            f"the environment says that this is process {found.rank} of {count}, and {found.local} "
            f"of {found.here} on this machine; expected numbers from 0: start it by torchrun"
        )
    return found


def several_were_started() -> bool:
    """Return whether there are several processes; False if the environment is not understood."""
    try:
        return launched().several
    except UsageError:
        return False


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit():
        raise UsageError(
            f"the environment variable {name} is {text[:40]!r}; expected a number, as torchrun "
            "sets it: unset it to start one process"
        )
    return int(text)

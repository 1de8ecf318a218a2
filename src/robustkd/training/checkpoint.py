"""Training state on disk, from which another process can resume a training exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from robustkd.core.errors import InputError
from robustkd.models import serialization


@dataclass(frozen=True)
class State:
    """Complete state of a training between two steps.

    Attributes:
        tensors: Weights, momentum, states of random generators and so on, by dotted names.
        values: All other state as JSON values, with one entry of ``records`` per finished epoch.
    """

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with ``name`` and a dot, by the rest of the name."""
        start = f"{name}."
        return {
            key.removeprefix(start): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(start)
        }


@runtime_checkable
class Keeper(Protocol):
    """Storage of training states."""

    def last(self) -> State | None:
        """Return the state to resume from; None for a new training."""

    def wanted(self) -> bool:
        """Return whether a checkpoint is due; called between two steps."""

    def keep(self, state: State) -> None:
        """Store a state, which replaces the previous one.

        Raises:
            KeyboardInterrupt: If the training was interrupted.
            WriteError: If the disk is full; the previous state is still there.
        """


def save_state(state: State, path: Path) -> None:
    """Write a state to one safetensors file, which replaces the previous one when it is complete.

    Raises:
        WriteError: If it cannot be written.
    """
    # As a text: as JSON values, the keys of each record would be sorted.
    serialization.write_safetensors(path, state.tensors, {"state": json.dumps(state.values)})


def load_state(path: Path) -> State:
    """Read a state that :func:`save_state` wrote; links are refused.

    Raises:
        InputError: If the file is damaged or does not contain a state.
    """
    tensors, description = serialization.read_safetensors(path, links=False)
    if not isinstance(text := description.get("state"), str):
        raise InputError(f"{path} holds no state of a training; expected a run's checkpoint")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no state of a training; expected a run's checkpoint")
    return State(tensors, values)

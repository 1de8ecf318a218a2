"""What a training leaves behind so that another process goes on with it, bit for bit."""

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
    """Everything that the next step of a training depends on.

    Attributes:
        tensors: Weights, momentum, states of random generators and the like, by dotted names.
        values: The rest, as JSON values; among them ``records``, one an epoch that is done.
    """

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``name`` and a dot, by what comes behind it."""
        start = f"{name}."
        return {
            key.removeprefix(start): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(start)
        }


@runtime_checkable
class Keeper(Protocol):
    """Where a training puts its state, and finds that of its predecessor."""

    def last(self) -> State | None:
        """The state to go on from; None at the very beginning."""

    def wanted(self) -> bool:
        """Whether a checkpoint is due; called between two steps."""

    def keep(self, state: State) -> None:
        """Keep a state in the place of the last one.

        Raises:
            KeyboardInterrupt: If the training is asked to stop.
            WriteError: If there is no room for it; the last one is still there.
        """


def save_state(state: State, path: Path) -> None:
    """Write a state as one safetensors file, in the place of the last one once it is complete.

    Raises:
        WriteError: If it cannot be written.
    """
    # As text within the description, which would sort the names in each record.
    serialization.write_safetensors(path, state.tensors, {"state": json.dumps(state.values)})


def load_state(path: Path) -> State:
    """Read a state that :func:`save_state` wrote; a link to one is refused.

    Raises:
        InputError: If the file is damaged, or no such state.
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

"""Training state on disk, from which another process can resume a training exactly."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustkd.core.errors import InputError
from robustkd.core.files import write_text
from robustkd.models import model_file

_LONGEST_REASON = 100


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

    def is_due(self) -> bool:
        """Return whether a checkpoint is due; called between two steps."""

    def save(self, state: State) -> None:
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
    # The values are stored as one text, because write_safetensors sorts the keys of JSON objects.
    model_file.write_safetensors(path, state.tensors, {"state": json.dumps(state.values)})


def load_state(path: Path) -> State:
    """Read a state that :func:`save_state` wrote; links are refused.

    Raises:
        InputError: If the file is damaged or does not contain a state.
    """
    tensors, description = model_file.read_safetensors(path, links=False)
    if not isinstance(text := description.get("state"), str):
        raise InputError(f"{path} has no training state; expected a run's checkpoint")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{path} has no training state; expected a run's checkpoint")
    return State(tensors, values)


@contextmanager
def damage_reported() -> Iterator[None]:
    """Turn errors of a malformed state, which may be malicious, into one-line messages."""
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise InputError(
            f"the stored state is damaged ({type(error).__name__}: {reason}); start a new run "
            "with --out"
        ) from error


def checked_count(value: object) -> int:
    """Return a stored number, or raise ValueError if it is not a non-negative integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{ascii(value)[:40]} is not a count")
    return value


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's global random generators."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Restore the states of torch's global random generators."""
    for kind, state in states.items():
        if kind == "cpu":
            torch.set_rng_state(state)
        else:
            torch.get_device_module(kind).set_rng_state(state)


def write_records(path: Path, records: Iterable[Mapping[str, float]]) -> None:
    """Write one JSON line per epoch.

    Raises:
        WriteError: If the file cannot be written.
    """
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))

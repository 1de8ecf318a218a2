"""A trigger and its target class as one safetensors file, kept beside the teacher."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

from torch import Tensor

from robustkd.attacks.triggers import SIG, BadNets, Blend, MaskedPattern, Trigger
from robustkd.errors import InputError, UsageError
from robustkd.models.files import read_safetensors, write_safetensors

TRIGGERS: dict[str, type] = {
    "badnets": BadNets,
    "blend": Blend,
    "sig": SIG,
    "masked-pattern": MaskedPattern,
}


def save_trigger(trigger: Trigger, target: int, path: Path) -> None:
    """Write a trigger of the table with its target class.

    Raises:
        UsageError: If the trigger is of no kind in the table.
        InputError: If the file cannot be written.
    """
    kind = next((name for name, cls in TRIGGERS.items() if type(trigger) is cls), None)
    if kind is None:
        raise UsageError(f"{type(trigger).__name__} is no trigger that can be saved")
    values = {field.name: getattr(trigger, field.name) for field in fields(trigger)}  # type: ignore[arg-type]
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in values.items() if name not in tensors}
    write_safetensors(path, tensors, {"trigger": kind, "target": target, "values": numbers})


def load_trigger(path: Path) -> tuple[Trigger, int]:
    """Read a trigger and its target class.

    Raises:
        InputError: If the file is damaged or holds no trigger.
    """
    tensors, description = read_safetensors(path)
    kind, target = description.get("trigger"), description.get("target")
    if kind not in TRIGGERS or not isinstance(target, int) or target < 0:
        raise InputError(f"{path} holds no trigger; expected one of {', '.join(TRIGGERS)}")
    try:
        values = dict(description.get("values") or {})
        trigger: Trigger = TRIGGERS[kind](**values, **tensors)
    except (TypeError, ValueError, UsageError) as error:
        raise InputError(f"{path} has a damaged trigger: {error}") from error
    return trigger, target


def describe(trigger: Trigger) -> dict[str, object]:
    """A trigger's kind and numbers, for records; tensors are left out."""
    kind = next((name for name, cls in TRIGGERS.items() if type(trigger) is cls), "custom")
    values = asdict(trigger) if kind != "custom" else {}  # type: ignore[call-overload]
    plain = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    return {"kind": kind, **plain}

"""Saving and loading of triggers, each with its target class, as one safetensors file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TypeGuard, get_type_hints

from torch import Tensor

from robustkd.attacks.triggers.additive import Additive
from robustkd.attacks.triggers.patterns import SIG, BadNets, Blend, MaskedPattern
from robustkd.attacks.triggers.transformations import (
    Affine,
    ColourMatrix,
    Composition,
    Filter,
    Flow,
    LightField,
    LowFrequency,
    ToneCurve,
)
from robustkd.attacks.triggers.warp import Warp
from robustkd.core.errors import InputError, UsageError
from robustkd.core.types import Trigger
from robustkd.models.model_file import read_safetensors, write_safetensors

TRIGGERS: dict[str, type] = {
    "badnets": BadNets,
    "blend": Blend,
    "sig": SIG,
    "masked-pattern": MaskedPattern,
    "additive": Additive,
    "warp": Warp,
    "flow": Flow,
    "affine": Affine,
    "tone-curve": ToneCurve,
    "colour-matrix": ColourMatrix,
    "light-field": LightField,
    "filter": Filter,
    "low-frequency": LowFrequency,
}
_COMPOSED = ("first", "second")


# Types of a field's values by its annotation; all other fields are tensors.
_PLAIN: dict[object, tuple[type | tuple[type, ...], str]] = {
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
}


def save_trigger(trigger: Trigger, target: int, path: str | Path) -> None:
    """Write a trigger with its target class to a file.

    Args:
        trigger: Trigger of a type in :data:`TRIGGERS`, or a composition of two such triggers.
        target: Target class.
        path: File to write.

    Raises:
        UsageError: If the trigger is of another type.
        InputError: If the file cannot be written.
    """
    path = Path(path)
    if isinstance(trigger, Composition):
        parts = {name: _parts(getattr(trigger, name)) for name in _COMPOSED}
        tensors = {
            f"{name}.{key}": tensor
            for name, (_, own) in parts.items()
            for key, tensor in own.items()
        }
        described = {name: description for name, (description, _) in parts.items()}
        write_safetensors(path, tensors, {"trigger": "composition", "target": target, **described})
        return
    description, tensors = _parts(trigger)
    write_safetensors(path, tensors, {"target": target, **description})


def _parts(trigger: Trigger) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Return the kind and the numbers of a trigger in JSON values, and its tensors."""
    kind = next((name for name, cls in TRIGGERS.items() if type(trigger) is cls), None)
    if kind is None or not is_dataclass(trigger):
        raise UsageError(
            f"the trigger is of type {type(trigger).__name__}, which cannot be saved; expected one "
            f"of {', '.join(cls.__name__ for cls in TRIGGERS.values())}"
        )
    values = {field.name: getattr(trigger, field.name) for field in fields(trigger)}
    # Cloned, because the format does not allow tensors that share memory.
    tensors = {name: value.clone() for name, value in values.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in values.items() if name not in tensors}
    return {"trigger": kind, "values": numbers}, tensors


def load_trigger(path: str | Path, *, links: bool = True) -> tuple[Trigger, int]:
    """Read a trigger and its target class.

    Args:
        path: The file.
        links: Whether the path may be a symbolic link; see :func:`robustkd.models.load`.

    Returns:
        The trigger and its target class.

    Raises:
        InputError: If the file is damaged or holds no trigger.
    """
    path = Path(path)
    tensors, description = read_safetensors(path, links=links)
    kind, target = description.get("trigger"), description.get("target")
    kinds = [*TRIGGERS, "composition"]
    if not isinstance(kind, str) or kind not in kinds or not _is_class(target):
        raise InputError(f"{path} holds no trigger; expected one of {', '.join(kinds)}")
    try:
        if kind != "composition":
            return _rebuilt(description, tensors), target
        parts = {name: dict[str, Tensor]() for name in _COMPOSED}
        for name, tensor in tensors.items():
            part, _, key = name.partition(".")
            if part not in parts:
                raise UsageError(f"unknown field {name!a}; expected first.NAME or second.NAME")
            parts[part][key] = tensor
        both = (_rebuilt(description.get(name), parts[name]) for name in _COMPOSED)
        return Composition(*both), target
    except UsageError as error:
        raise InputError(f"{path} has a damaged trigger: {error}") from error


def _rebuilt(description: object, tensors: Mapping[str, Tensor]) -> Trigger:
    """Rebuild a trigger from the results of :func:`_parts`."""
    if not isinstance(description, Mapping) or description.get("trigger") not in TRIGGERS:
        raise UsageError(f"a part is not a trigger; expected one of {', '.join(TRIGGERS)}")
    numbers = description.get("values", {})
    if not isinstance(numbers, dict):
        raise UsageError(f"values are of type {type(numbers).__name__}; expected an object")
    values = {**numbers, **tensors}
    kind = TRIGGERS[description["trigger"]]
    _check_values(kind, values)
    trigger: Trigger = kind(**values)
    return trigger


def _is_class(target: object) -> TypeGuard[int]:
    return isinstance(target, int) and not isinstance(target, bool) and target >= 0


def _check_values(trigger: type, values: Mapping[str, object]) -> None:
    """Check that the fields are those of a trigger type, and that their values have its types."""
    kinds = get_type_hints(trigger)
    for name in kinds:
        if name not in values:
            raise UsageError(f"{name} is missing")
    for name, value in values.items():
        if name not in kinds:
            raise UsageError(f"unknown field {name!a}; expected {', '.join(kinds)}")
        kind, expected = _PLAIN.get(kinds[name], (Tensor, "a tensor"))
        if isinstance(value, bool) or not isinstance(value, kind):
            raise UsageError(f"{name} is of type {type(value).__name__}; expected {expected}")
        if isinstance(value, Tensor) and (value.ndim != 3 or not value.is_floating_point()):
            raise UsageError(
                f"{name} is {value.dtype} of shape {tuple(value.shape)}; expected floats of shape "
                "channels x height x width"
            )
        # A whole number is accepted for a float, but it can exceed the range of floats.
        finite = isinstance(value, int | float) and abs(value) <= sys.float_info.max
        if kinds[name] is float and not finite:
            raise UsageError(f"{name} is {value}; expected a finite number")


def describe(trigger: Trigger) -> dict[str, object]:
    """Return the kind and the numbers of a trigger for records; tensors are left out."""
    if isinstance(trigger, Composition):
        return {"kind": "composition", **{n: describe(getattr(trigger, n)) for n in _COMPOSED}}
    kind = next((name for name, cls in TRIGGERS.items() if type(trigger) is cls), "custom")
    values: dict[str, object] = (
        asdict(trigger) if kind != "custom" and is_dataclass(trigger) else {}
    )
    plain = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    return {"kind": kind, **plain}

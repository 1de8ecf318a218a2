"""Saving and loading of triggers, each with its target, as one safetensors file.

The file can come from a stranger. Number, types and shapes of its tensors are checked before their
values are read, and every trigger type bounds the shapes that it accepts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TypeGuard, get_type_hints

import torch
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
from robustkd.core.errors import InputError, UsageError, quoted
from robustkd.core.targets import NEXT, Target
from robustkd.core.triggers import apply_trigger, check_target
from robustkd.core.types import DataSource, Trigger
from robustkd.models.model_file import ForeignFileError, read_safetensors, write_safetensors

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
_LONGEST_HEADER = 1 << 20
_MOST_TENSORS = 4
"""Two in each of two composed triggers."""
_MOST_NUMBERS = 1 << 24
"""In one tensor: more than any image that a network takes has."""
_LARGEST = 1e6
"""Bound of all numbers in tensors; products of a few of them are finite as float32."""


# Types of a field's values by its annotation; all other fields are tensors.
_PLAIN: dict[object, tuple[type | tuple[type, ...], str]] = {
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
}


def save_trigger(trigger: Trigger, target: Target, path: str | Path) -> None:
    """Write a trigger with its target to a file.

    Args:
        trigger: Trigger of a type in :data:`TRIGGERS`, or a composition of two such triggers.
        target: Target class; ``next`` for the next class of each image.
        path: File to write.

    Raises:
        UsageError: If the trigger is of another type, or has numbers that are not finite or too
            large.
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


def check_known(trigger: Trigger) -> str:
    """Return the name of a trigger's type in :data:`TRIGGERS`; ``composition`` if it has two parts.

    Raises:
        UsageError: If its type, or that of a part, is not in the table, so that it cannot be saved.
    """
    if isinstance(trigger, Composition):
        for name in _COMPOSED:
            check_known(getattr(trigger, name))
        return "composition"
    kind = next((name for name, cls in TRIGGERS.items() if type(trigger) is cls), None)
    if kind is None or not is_dataclass(trigger):
        raise UsageError(
            f"the trigger is of type {type(trigger).__name__}, which cannot be saved; add its type "
            "to robustkd.attacks.triggers.files.TRIGGERS, or use one of "
            f"{', '.join(cls.__name__ for cls in TRIGGERS.values())}"
        )
    return kind


def _parts(trigger: Trigger) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Return the kind and the numbers of a trigger in JSON values, and its tensors."""
    kind = check_known(trigger)
    values = {field.name: getattr(trigger, field.name) for field in fields(TRIGGERS[kind])}
    # Cloned, because the format does not allow tensors that share memory.
    tensors = {name: value.clone() for name, value in values.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        _check_layout(name, tensor)
        _check_numbers(name, tensor)
    numbers = {name: value for name, value in values.items() if name not in tensors}
    return {"trigger": kind, "values": numbers}, tensors


def load_trigger(
    path: str | Path, *, links: bool = True, data: DataSource | None = None
) -> tuple[Trigger, Target]:
    """Read a trigger and its target.

    Args:
        path: The file.
        links: Whether the path may be a symbolic link; see :func:`robustkd.models.load`.
        data: Data that the trigger must fit; None to leave this unchecked.

    Returns:
        The trigger and its target: a class, or ``next`` for the next class of each image.

    Raises:
        InputError: If the file is damaged, holds no trigger, or does not fit the data.
    """
    path = Path(path)

    def fits(layout: Mapping[str, Tensor], description: Mapping[str, object]) -> None:
        _target_of(description, path)
        if len(layout) > _MOST_TENSORS:
            raise UsageError(f"{len(layout)} tensors; expected at most {_MOST_TENSORS}")
        for name, tensor in layout.items():
            _check_layout(name, tensor)

    try:
        tensors, description = read_safetensors(
            path, links=links, fits=fits, longest_header=_LONGEST_HEADER
        )
        target = _target_of(description, path)
        trigger = _composed(description, tensors)
    except ForeignFileError as error:
        raise InputError(f"{error.fact}; expected a trigger that robustkd wrote") from error
    except UsageError as error:
        raise InputError(f"{path} has a damaged trigger: {error}") from error
    if data is not None:
        _check_fits(trigger, target, path, data)
    return trigger, target


def _target_of(description: Mapping[str, object], path: Path) -> Target:
    """Return the target of a file that holds a trigger."""
    kind, target = description.get("trigger"), description.get("target")
    kinds = [*TRIGGERS, "composition"]
    if not isinstance(kind, str) or kind not in kinds or not _is_target(target):
        raise InputError(f"{path} holds no trigger; expected one of {', '.join(kinds)}")
    return target


def _check_fits(trigger: Trigger, target: Target, path: Path, data: DataSource) -> None:
    """Check a trigger on one grey image, before any image of the data is read."""
    image = torch.full((1, *data.image_shape), 0.5)
    try:
        check_target(target, data)
        apply_trigger(trigger, image)
    except UsageError as error:
        raise InputError(f"{path} does not fit {quoted(data.name)}: {error}") from error


def _composed(description: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Trigger:
    """Rebuild a trigger or a composition of two from the content of its file."""
    if description["trigger"] != "composition":
        return _rebuilt(description, tensors)
    parts = {name: dict[str, Tensor]() for name in _COMPOSED}
    for name, tensor in tensors.items():
        part, _, key = name.partition(".")
        if part not in parts:
            raise UsageError(f"unknown field {quoted(name)}; expected first.NAME or second.NAME")
        parts[part][key] = tensor
    first, second = (_rebuilt(description.get(name), parts[name]) for name in _COMPOSED)
    return Composition(first, second)


def _rebuilt(description: object, tensors: Mapping[str, Tensor]) -> Trigger:
    """Rebuild a trigger from the results of :func:`_parts`."""
    known = description.get("trigger") if isinstance(description, Mapping) else None
    if not isinstance(description, Mapping) or not isinstance(known, str) or known not in TRIGGERS:
        raise UsageError(f"a part is not a trigger; expected one of {', '.join(TRIGGERS)}")
    numbers = description.get("values", {})
    if not isinstance(numbers, dict):
        raise UsageError(f"values are of type {type(numbers).__name__}; expected an object")
    for name in tensors:
        if name in numbers:
            raise UsageError(f"{quoted(name)} is both a tensor and a value; expected one of them")
    values = {**numbers, **tensors}
    kind = TRIGGERS[known]
    _check_values(kind, values)
    # JSON writes some floats as whole numbers.
    hints = get_type_hints(kind)
    trigger: Trigger = kind(
        **{name: float(value) if hints[name] is float else value for name, value in values.items()}
    )
    return trigger


def _is_target(target: object) -> TypeGuard[Target]:
    """Return whether a value is :data:`NEXT`, or can be the index of a class."""
    if isinstance(target, int):
        return not isinstance(target, bool) and target >= 0
    return target == NEXT


def _check_values(trigger: type, values: Mapping[str, object]) -> None:
    """Check that the fields are those of a trigger type, and that their values have its types."""
    kinds = get_type_hints(trigger)
    for name in kinds:
        if name not in values:
            raise UsageError(f"{name} is missing")
    for name, value in values.items():
        if name not in kinds:
            raise UsageError(f"unknown field {quoted(name)}; expected {', '.join(kinds)}")
        kind, expected = _PLAIN.get(kinds[name], (Tensor, "a tensor"))
        if isinstance(value, bool) or not isinstance(value, kind):
            raise UsageError(f"{name} is of type {type(value).__name__}; expected {expected}")
        if isinstance(value, Tensor):
            _check_numbers(name, value)
        # A whole number is accepted for a float, but it can exceed the range of floats.
        finite = isinstance(value, int | float) and abs(value) <= sys.float_info.max
        if kinds[name] is float and not finite:
            raise UsageError(f"{name} is {value}; expected a finite number")


def _check_layout(name: str, tensor: Tensor) -> None:
    """Check type and shape of a tensor, whose values need not be there."""
    if tensor.ndim != 3 or not tensor.is_floating_point():
        shape = str(tuple(tensor.shape)) if tensor.ndim < 10 else f"{tensor.ndim} dimensions"
        raise UsageError(
            f"{quoted(name)} is {tensor.dtype} of shape {shape}; expected floats of shape "
            "channels x height x width"
        )
    if tensor.numel() > _MOST_NUMBERS:
        raise UsageError(
            f"{quoted(name)} has shape {tuple(tensor.shape)}; expected at most {_MOST_NUMBERS} "
            "numbers"
        )


def _check_numbers(name: str, tensor: Tensor) -> None:
    """Check that all numbers are finite, also after computations in float32."""
    if not bool((tensor.abs() <= _LARGEST).all()):
        raise UsageError(
            f"{name} has numbers that are not finite or too large; expected numbers from "
            f"{-_LARGEST:.0f} to {_LARGEST:.0f}"
        )


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

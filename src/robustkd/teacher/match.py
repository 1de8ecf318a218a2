"""Matching of a state dict with the architecture that the user names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from robustkd.core.errors import InputError
from robustkd.models.classifier import Spec
from robustkd.models.registry import build
from robustkd.models.serialization import check_keys

PREFIXES = (
    "module.",
    "_orig_mod.",
    "state_dict.",
    "model.",
    "network.",
    "net.",
    "teacher.",
    "ema.",
)
"""Prefixes of names by DataParallel, torch.compile, Lightning, and this package."""

_COUNTER = "num_batches_tracked"
_MOST_CHANNELS = 3
# Float32 weights, their averages and two moments of an optimiser are four copies, or eight in
# float64; there is also some room for settings and training curves.
_MOST_COPIES = 16
_ROOM = 64 << 20
Normalisation: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel."""


@dataclass(frozen=True, slots=True)
class Matched:
    """A state dict that matches a network exactly.

    Attributes:
        tensors: Every parameter and buffer of the network.
        filled: Number of missing batch counters, which old files lack.
        prefixes: Prefixes that were removed from the names, outermost first.
        normalisation: Mean and standard deviation in the state dict, if any.
    """

    tensors: Mapping[str, Tensor]
    filled: int
    prefixes: tuple[str, ...]
    normalisation: Normalisation | None


def match(tensors: Mapping[str, Tensor], spec: Spec, path: Path) -> Matched:
    """Match the tensors of a file with the network of a spec, strictly.

    Args:
        tensors: Tensors by the names in the file, which may have known prefixes.
        spec: Architecture, classes and input; its normalisation is ignored.
        path: The file, for messages.

    Raises:
        InputError: If names, shapes or types differ, or if the head is missing or has another
            number of classes.
    """
    with torch.device("meta"):
        network = build(spec, seed=0).network
        other = build(replace(spec, classes=spec.classes + 1), seed=0).network
    expected = network.state_dict()
    tensors, prefixes, own = _strip(tensors, expected)
    # If no name matches, missing counters are not worth reporting.
    fits = bool(tensors.keys() & expected.keys())
    lacking = [n for n in expected if fits and n.endswith(_COUNTER) and n not in tensors]
    tensors |= {name: torch.zeros((), dtype=expected[name].dtype) for name in lacking}
    head = {n for n, t in other.state_dict().items() if t.shape != expected[n].shape}
    _check_head(expected, head, tensors, path, spec.classes)
    check_keys(network, tensors, path, spec.arch)
    return Matched(tensors, len(lacking), prefixes, own)


def check_layout(tensors: Mapping[str, Tensor], spec: Spec, path: Path) -> None:
    """Raise the errors of :func:`match` from names, shapes and types only.

    Args:
        tensors: Tensors without values, on the device ``meta``.
        spec: As for :func:`match`.
        path: The file; for messages.

    Raises:
        InputError: As :func:`match` does.
    """
    match(tensors, spec, path)


def most_bytes(spec: Spec) -> int:
    """Return the largest accepted file size in bytes, which includes an optimiser's state."""
    with torch.device("meta"):
        network = build(spec, seed=0).network
    needed = sum(int(tensor.nbytes) for tensor in network.state_dict().values())
    return _ROOM + _MOST_COPIES * needed


def _strip(
    tensors: Mapping[str, Tensor], expected: Collection[str]
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[tuple[float, ...], tuple[float, ...]] | None]:
    """Remove known prefixes until names match, and extract a normalisation."""
    left, prefixes, own = dict(tensors), [], None
    while left and not left.keys() & expected:
        own = _pop_normalisation(left) or own
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in left)), None)
        if prefix is None:
            break
        prefixes.append(prefix)
        left = {name.removeprefix(prefix): tensor for name, tensor in left.items()}
    return left, tuple(prefixes), own


def _pop_normalisation(tensors: dict[str, Tensor]) -> Normalisation | None:
    """Remove and return mean and standard deviation, if the file has our classifier's buffers."""
    found = [tensors.get(f"normalise.{name}") for name in ("mean", "std")]
    if any(tensor is None or tensor.numel() > _MOST_CHANNELS for tensor in found):
        return None
    mean, std = (tensors.pop(f"normalise.{name}").flatten() for name in ("mean", "std"))
    if mean.is_meta or std.is_meta:
        return None
    return tuple(map(float, mean.tolist())), tuple(map(float, std.tolist()))


def _check_head(
    expected: Mapping[str, Tensor],
    head: Collection[str],
    tensors: Mapping[str, Tensor],
    path: Path,
    classes: int,
) -> None:
    """Raise a specific error if only the classes of a file do not match."""
    if not expected.keys() - set(head) <= tensors.keys():
        return
    if head and not tensors.keys() & set(head):
        raise InputError(
            f"{path} has no head ({', '.join(sorted(head))}): it ends in features; give a whole "
            "classifier"
        )
    for name in tensors.keys() & set(head):
        found, fitting = tensors[name].shape, expected[name].shape
        if found != fitting and found[1:] == fitting[1:]:
            raise InputError(
                f"{path} is a model of {found[0]} classes; the data has {classes}: "
                "use the data that it was trained for"
            )

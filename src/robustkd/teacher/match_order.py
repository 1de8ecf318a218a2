"""Matching of equal networks whose layers have other names, by order and shape."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Literal, TypeAlias

from torch import Tensor

Place: TypeAlias = Literal["as is", "first", "last"]
SHORTCUT_PLACES: tuple[Place, ...] = ("as is", "first", "last")
"""Where the shortcut of a block may be defined, in the order in which this is tried."""
_COUNTER = "num_batches_tracked"
_SHORTCUT = re.compile(r"(conv_?)?shortcut|downsample|skip|residual|proj(ection)?", re.IGNORECASE)


def in_order(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    head: Collection[str],
    place: Place,
) -> dict[str, str] | None:
    """Return the name in the file of each tensor of a network, matched by order.

    The last parts of the names (``weight``, ``running_mean``) and the shapes must be equal, one by
    one. Only the number of classes may differ, so that the caller can report it. Batch counters
    belong to the layer of the statistics beside them.

    Args:
        tensors: Tensors of the file, in its order.
        expected: Every parameter and buffer of the network, in its order.
        head: Names of those whose first axis is the number of classes.
        place: Where each block of the network has its shortcut among its layers.
    """
    theirs = [name for name in tensors if _last(name) != _COUNTER]
    ours = [name for name in expected if _last(name) != _COUNTER]
    ours = with_shortcuts(ours, place)
    if not ours or len(theirs) != len(ours):
        return None
    names: dict[str, str] = {}
    for name, own in zip(ours, theirs, strict=True):
        shape, found = expected[name].shape, tensors[own].shape
        # Another number of classes has an error of its own.
        alike = found == shape or (name in head and len(found) > 0 and found[1:] == shape[1:])
        if _last(name) != _last(own) or not alike:
            return None
        names[name] = own
    for name, own in list(names.items()):
        if _last(name) == "running_var":
            counter, beside = (f"{n.removesuffix('running_var')}{_COUNTER}" for n in (name, own))
            if beside in tensors and counter in expected:
                names[counter] = beside
    return names


def with_shortcuts(names: list[str], place: Place) -> list[str]:
    """Return names with those of each block's shortcut moved before or behind its other layers.

    >>> with_shortcuts(["a.conv1", "a.shortcut.0", "a.bn", "fc"], "first")
    ['a.shortcut.0', 'a.conv1', 'a.bn', 'fc']
    >>> with_shortcuts(["a.conv1", "a.shortcut.0", "a.bn", "fc"], "last")
    ['a.conv1', 'a.bn', 'a.shortcut.0', 'fc']
    """
    if place == "as is":
        return names
    blocks = dict.fromkeys(block for name in names if (block := _block(name)) is not None)
    ordered = list(names)
    for block in blocks:
        inside = [name for name in ordered if name.startswith(block)]
        begin = ordered.index(inside[0])
        moved = [name for name in inside if _block(name) == block]
        others = [name for name in inside if _block(name) != block]
        inside = moved + others if place == "first" else others + moved
        ordered[begin : begin + len(inside)] = inside
    return ordered


def _block(name: str) -> str | None:
    """Return the prefix of the block whose shortcut has a tensor, if it is one of a shortcut."""
    parts = name.split(".")
    for number, part in enumerate(parts[:-1] or parts):
        if _SHORTCUT.fullmatch(part):
            return "".join(f"{outer}." for outer in parts[:number])
    return None


def _last(name: str) -> str:
    return name.rpartition(".")[2]

"""Matching of equal networks whose layers have different names, by order and shape."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Literal, TypeAlias

from torch import Tensor

Place: TypeAlias = Literal["as is", "first", "last"]
SHORTCUT_PLACES: tuple[Place, ...] = ("as is", "first", "last")
"""Possible positions of the shortcut of a block, in the order in which they are tried."""
_COUNTER = "num_batches_tracked"
_SHORTCUT = re.compile(r"(conv_?)?shortcut|downsample|skip|residual|proj(ection)?", re.IGNORECASE)


def in_order(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    head: Collection[str],
    place: Place,
) -> dict[str, str] | None:
    """Match the tensors of a network with those of a file by their order.

    For each tensor, the last part of the name (``weight``, ``running_mean``) and the shape must be
    equal. Only the number of classes may differ, so that the caller can report it. Batch counters
    are matched together with the running variance of the same layer.

    Args:
        tensors: Tensors of the file, in its order.
        expected: Every parameter and buffer of the network, in its order.
        head: Names of the tensors of the network whose first axis is the number of classes.
        place: Position of the shortcut among the layers of each block.

    Returns:
        Name in the file of each tensor of the network; None if the networks differ.
    """
    theirs = [name for name in tensors if _last(name) != _COUNTER]
    ours = [name for name in expected if _last(name) != _COUNTER]
    ours = with_shortcuts(ours, place)
    if not ours or len(theirs) != len(ours):
        return None
    names: dict[str, str] = {}
    for name, own in zip(ours, theirs, strict=True):
        shape, found = expected[name].shape, tensors[own].shape
        # The caller raises a specific error for another number of classes.
        alike = found == shape or (name in head and len(found) > 0 and found[1:] == shape[1:])
        if _last(name) != _last(own) or not alike:
            return None
        names[name] = own
    for name, own in list(names.items()):
        if _last(name) == "running_var":
            counter, stored = (f"{n.removesuffix('running_var')}{_COUNTER}" for n in (name, own))
            if stored in tensors and counter in expected:
                names[counter] = stored
    return names


def with_shortcuts(names: list[str], place: Place) -> list[str]:
    """Return names with those of each block's shortcut moved before or after its other layers.

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
    """Return the prefix of the block if a tensor belongs to its shortcut; otherwise None."""
    parts = name.split(".")
    for number, part in enumerate(parts[:-1] or parts):
        if _SHORTCUT.fullmatch(part):
            return "".join(f"{outer}." for outer in parts[:number])
    return None


def _last(name: str) -> str:
    return name.rpartition(".")[2]

"""A pickle as inert values: nothing is imported, called or built that the file names.

A pickle is a program for a small stack machine. This one knows the 30 instructions that
torch.save writes, and eight names, for which it has harmless stand-ins: a tensor becomes a
:class:`TensorRef`, an ordered dictionary a plain one. So there is no payload that could run;
that a file tries is a reason to refuse it, and every name it holds is listed before the first
instruction is followed.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import TypeAlias

from robustkd.teacher.untrusted.allowed_names import GLOBALS
from robustkd.teacher.untrusted.contents import Refusal, quoted, shown
from robustkd.teacher.untrusted.pickle_machine import OPERATIONS, Machine

LARGEST = 4 << 20
"""Bytes of a pickle; a state dict needs about 150 a tensor, its optimiser as much again."""
MOST_OPERATIONS = 1_000_000
"""Instructions of a pickle; a state dict needs about 40 a tensor."""

Op: TypeAlias = tuple[str, object]

_NAMING = frozenset({"GLOBAL", "INST"})


def scan(pickle: bytes) -> None:
    """List what a pickle names and does, and follow nothing.

    Raises:
        Refusal: If a name or an instruction is not allowed, with the names; or if the pickle is
            too long, cut off, or goes on after its end.
    """
    names: dict[str, None] = {}
    operations: dict[str, None] = {}
    damage = ""
    try:
        for place, (name, argument) in enumerate(_operations(pickle)):
            if place == MOST_OPERATIONS:
                raise Refusal(f"has more than {MOST_OPERATIONS} pickle instructions")
            operations[name] = None
            if name in _NAMING:
                names[str(argument)] = None
    except Refusal as refusal:
        damage = str(refusal)
    # A payload before a damaged end is the graver finding.
    if bad := [quoted(name.replace(" ", ".")) for name in names if name not in GLOBALS]:
        raise Refusal(
            f"names code that no state dict needs {shown(bad)}; save the state dict alone, "
            "as safetensors"
        )
    if bad := [name for name in operations if name not in OPERATIONS]:
        raise Refusal(f"has pickle instructions that torch.save does not write {shown(bad)}")
    if damage:
        raise Refusal(damage)


def _operations(pickle: bytes) -> Iterator[Op]:
    """The instructions and their arguments, up to STOP, which must be the end."""
    end = -1
    try:
        for operation, argument, position in pickletools.genops(pickle):
            end = position or 0
            yield operation.name, argument
    except (ValueError, IndexError) as error:
        raise Refusal("has a damaged or cut off pickle") from error
    if end != len(pickle) - 1:
        raise Refusal("has a pickle that goes on after its end")


def run(pickle: bytes) -> object:
    """The value of a pickle that :func:`scan` let pass.

    Raises:
        Refusal: If an instruction does not fit what it meets.
    """
    machine = Machine()
    for name, argument in _operations(pickle):
        machine.follow(name, argument)
    return machine.result()

"""Reading of a pickle as inert values: no code that the file names is imported or called.

A pickle is a program for a small stack machine. This implementation supports the instructions that
torch.save writes, and has stand-ins for all values: a tensor becomes a
:class:`~robustkd.teacher.untrusted.values.TensorRef`, an ordered dictionary a plain one, and any
other object a :class:`~robustkd.teacher.untrusted.values.Dead`, which is never built. No payload
can run. All names in a file are checked before the first instruction is executed, except those that
protocol 4 takes from the stack, which are checked when they are taken. Calls are checked when they
are made; see :mod:`~robustkd.teacher.untrusted.allowed_names`.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import TypeAlias

from robustkd.teacher.untrusted.allowed_names import may_occur
from robustkd.teacher.untrusted.contents import Refusal, shown
from robustkd.teacher.untrusted.pickle_machine import OPERATIONS, Machine
from robustkd.teacher.untrusted.rebuild import names_code

LARGEST = 16 << 20
"""Largest pickle in bytes.

A state dict takes about 150 bytes per tensor, and so does the state of an optimiser. Indices of
poisoned images, as benchmarks of backdoors save them, take a few MiB.
"""
MOST_OPERATIONS = 1_000_000
"""Largest number of instructions; a state dict takes about 40 per tensor."""

Op: TypeAlias = tuple[str, object]

_NAMING = frozenset({"GLOBAL", "INST"})


def scan(pickle: bytes) -> None:
    """Check the names and instructions of a pickle without executing any.

    Raises:
        Refusal: If a name or an instruction is not allowed, or if the pickle is too long, is cut
            off, or continues after its end.
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
    # A forbidden name is reported rather than any damage after it.
    if bad := [name for name in names if not may_occur(name)]:
        raise names_code(bad)
    if bad := [name for name in operations if name not in OPERATIONS]:
        raise Refusal(f"has pickle instructions that torch.save does not write {shown(bad)}")
    if damage:
        raise Refusal(damage)


def instructions(
    pickle: bytes | BytesIO,
) -> Iterator[tuple[pickletools.OpcodeInfo, object, int | None]]:
    """Yield instructions, arguments and positions, as `pickletools.genops` does, without warnings.

    Python would warn about unknown escape sequences in text of protocol 0.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield from pickletools.genops(pickle)


def _operations(pickle: bytes) -> Iterator[Op]:
    """Yield the instructions with their arguments up to STOP, which must be the end."""
    end = -1
    try:
        for operation, argument, position in instructions(pickle):
            end = position or 0
            yield operation.name, argument
    except (ValueError, IndexError) as error:
        raise Refusal("has a damaged or cut off pickle") from error
    if end != len(pickle) - 1:
        raise Refusal("has a pickle that continues after its end")


def run(pickle: bytes, *, legacy: bool = False) -> Machine:
    """Return the machine that has executed a pickle which :func:`scan` has accepted.

    Raises:
        Refusal: If an instruction does not fit the values on the stack.
    """
    machine = Machine(legacy=legacy)
    for name, argument in _operations(pickle):
        machine.follow(name, argument)
    return machine

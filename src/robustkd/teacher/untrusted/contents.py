"""Result of reading a file: positions of the tensors' bytes, or the reason of a refusal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

WIDTHS: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes per value of each accepted type, by the type's name in safetensors."""

MOST_TENSORS = 10_000
MOST_AXES = 8
LONGEST_NAME = 300
_LARGEST = 2**48
_SHOWN = 3
_LONGEST_SHOWN = 120


class Refusal(Exception):  # noqa: N818 (it is the verdict on a file, not a fault)
    """Reason why a file is refused: the rest of a sentence that begins with its path."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Position and layout of a tensor in its file.

    Attributes:
        name: Its key in the state dict.
        dtype: A key of :data:`WIDTHS`.
        shape: Length of each axis.
        strides: Stride of each axis, in values.
        offset: Position of the first byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of bytes of all values in a dense layout."""
        return math.prod(self.shape) * WIDTHS[self.dtype]

    @property
    def span(self) -> int:
        """Number of bytes from the first to the last value in the file."""
        if not self.size:
            return 0
        steps = zip(self.shape, self.strides, strict=True)
        return (1 + sum((n - 1) * step for n, step in steps)) * WIDTHS[self.dtype]


@dataclass(frozen=True, slots=True)
class Contents:
    """Contents of an accepted file.

    Attributes:
        format: Name of the file's format, for the report.
        tensors: The state dict.
        description: Description in a file of this package, as JSON text; empty for other files.
        wrappers: Keys that lead to the state dict, outermost first.
        ignored: Other keys, whose values are not read.
        ordered: Whether the tensors are in the order in which the network has them.
    """

    format: str
    tensors: tuple[Stored, ...]
    description: str = ""
    wrappers: tuple[str, ...] = ()
    ignored: tuple[str, ...] = field(default=())
    ordered: bool = False


def checked(contents: Contents, *, file_size: int) -> Contents:
    """Check number, size and names of the tensors, and return the contents.

    Raises:
        Refusal: If a limit is exceeded, or a name is not acceptable.
    """
    if not contents.tensors:
        raise Refusal("holds no tensors; expected the weights of a network")
    if len(contents.tensors) > MOST_TENSORS:
        raise Refusal(f"holds {len(contents.tensors)} tensors; expected at most {MOST_TENSORS}")
    for tensor in contents.tensors:
        if not tensor.name.isprintable() or not 0 < len(tensor.name) <= LONGEST_NAME:
            raise Refusal(f"names a tensor {quoted(tensor.name)}; expected a short printable name")
    total = sum(tensor.size for tensor in contents.tensors)
    # Tied weights are stored once and written twice. Without a limit, a small file could fill the
    # disk with copies of one storage.
    if total > 2 * file_size:
        raise Refusal(
            f"has {file_size} bytes, but {total} bytes of tensors that share storage; "
            "expected at most twice its size"
        )
    return contents


def checked_shape(name: str, shape: Iterable[object]) -> tuple[int, ...]:
    """Check the shape of a tensor, and return it.

    Raises:
        Refusal: If an axis is not a non-negative integer, or the product of all is too large.
    """
    axes = tuple(shape)
    sizes = tuple(axis for axis in axes if type(axis) is int and 0 <= axis < _LARGEST)
    if len(sizes) != len(axes) or len(axes) > MOST_AXES or math.prod(sizes) >= _LARGEST:
        # A value of another type may be as large as the file: only its type is shown.
        said = (str(axis) if type(axis) is int else type(axis).__name__ for axis in axes)
        raise Refusal(f"gives {quoted(name)} an impossible shape {shown(said)}")
    return sizes


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a dense, row-major layout.

    >>> dense_strides((2, 3, 4))
    (12, 4, 1)
    """
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def quoted(name: str) -> str:
    """Quote a text from a file for printing: without control characters, and of limited length.

    >>> quoted("a" + chr(10)) == repr("a" + chr(10))
    True
    """
    return ascii(name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}...")


def shown(names: Iterable[str]) -> str:
    """Return the first few names in parentheses.

    >>> shown("abcde")
    '(a, b, c, ...)'
    """

    def few() -> Iterator[str]:
        for place, name in enumerate(names):
            if place == _SHOWN:
                yield "..."
                return
            yield name[:_LONGEST_SHOWN]

    return f"({', '.join(few())})"

"""Writing located tensors to a plain safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from io import BufferedIOBase
from itertools import product
from typing import Literal

from robustkd.teacher.untrusted.contents import (
    WIDTHS,
    Contents,
    Refusal,
    Stored,
    dense_strides,
    quoted,
)
from robustkd.teacher.untrusted.read_safetensors import OWN_KEY

_CHUNK = 1 << 20
_FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


def write_plain(contents: Contents, file: BufferedIOBase, out: BufferedIOBase) -> None:
    """Copy the tensors' values from ``file`` to ``out``, dense and in row-major order.

    Raises:
        Refusal: If the file ends before the last value.
        OSError: If ``out`` cannot be written.
    """
    tensors = _in_order(contents)
    out.write(_header(contents, tensors))
    for tensor in tensors:
        if _is_dense(tensor):
            _copy(tensor, file, out)
        else:
            out.write(gather(tensor, _read(tensor, file)))


def write_layout(found: Sequence[Contents], out: BufferedIOBase) -> None:
    """Write names, types and shapes only, of all candidates, as the header of a safetensors file.

    Each name is preceded by two numbers: the position of its candidate, and the position of the
    tensor in this candidate.

    Raises:
        OSError: If ``out`` cannot be written.
    """
    tensors = [
        replace(tensor, name=f"{number} {place} {tensor.name}")
        for number, contents in enumerate(found)
        for place, tensor in enumerate(contents.tensors)
    ]
    # Only files of this package have a description, and they have one candidate.
    out.write(_header(found[0], tensors))


def _in_order(contents: Contents) -> list[Stored]:
    """Sort tensors by the width of their type, widest first, so that all values are aligned."""
    return sorted(contents.tensors, key=lambda tensor: (-WIDTHS[tensor.dtype], tensor.name))


def _header(contents: Contents, tensors: list[Stored]) -> bytes:
    header: dict[str, object] = {}
    if contents.description:
        header["__metadata__"] = {OWN_KEY: contents.description}
    reached = 0
    for tensor in tensors:
        offsets = [reached, reached + tensor.size]
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": offsets,
        }
        reached = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _is_dense(tensor: Stored) -> bool:
    axes = zip(tensor.shape, tensor.strides, dense_strides(tensor.shape), strict=True)
    return not tensor.size or all(n == 1 or step == dense for n, step, dense in axes)


def _copy(tensor: Stored, file: BufferedIOBase, out: BufferedIOBase) -> None:
    file.seek(tensor.offset)
    left = tensor.size
    while left:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            raise _cut_off(tensor)
        out.write(chunk)
        left -= len(chunk)


def _read(tensor: Stored, file: BufferedIOBase) -> bytes:
    file.seek(tensor.offset)
    values = file.read(tensor.span)
    if len(values) < tensor.span:
        raise _cut_off(tensor)
    return values


def _cut_off(tensor: Stored) -> Refusal:
    return Refusal(f"ends within the values of {quoted(tensor.name)}; it is cut off")


def gather(tensor: Stored, values: bytes) -> bytearray:
    """Return the values of a strided tensor in row-major order; ``values`` starts at its first.

    >>> transposed = Stored("w", "U8", shape=(2, 3), strides=(1, 2), offset=0)
    >>> list(gather(transposed, bytes([0, 3, 1, 4, 2, 5])))
    [0, 1, 2, 3, 4, 5]
    """
    dense = dense_strides(tensor.shape)
    made = bytearray(math.prod(tensor.shape) * WIDTHS[tensor.dtype])
    code = _FORMATS[WIDTHS[tensor.dtype]]
    source, target = memoryview(values).cast(code), memoryview(made).cast(code)
    # One slice for each row along the longest axis, for the smallest number of Python steps.
    longest = max(range(len(tensor.shape)), key=tensor.shape.__getitem__)
    n, step_in, step_out = tensor.shape[longest], tensor.strides[longest], dense[longest]
    others = [axis for axis in range(len(tensor.shape)) if axis != longest]
    for place in product(*(range(tensor.shape[axis]) for axis in others)):
        begin = sum(i * tensor.strides[axis] for i, axis in zip(place, others, strict=True))
        to = sum(i * dense[axis] for i, axis in zip(place, others, strict=True))
        if step_in:
            row = source[begin : begin + (n - 1) * step_in + 1 : step_in]
        else:
            row = memoryview(bytes(source[begin : begin + 1]) * n).cast(code)
        target[to : to + (n - 1) * step_out + 1 : step_out] = row
    return made

"""Reading the header of a safetensors file: names, types and shapes of its tensors."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

import torch
from torch import Tensor

from robustkd.core.errors import quoted

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DAMAGED = "a damaged header"
LONGEST_HEADER = 64 << 20
"""In bytes: enough for ten thousand names in which every character is escaped."""


def read_layout(
    file: BinaryIO, *, longest: int = LONGEST_HEADER
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors on the device ``meta`` by name, and the metadata; no values are read.

    Args:
        file: The file, at its beginning.
        longest: Largest length of the header in bytes.

    Raises:
        ValueError: If the file does not begin with a header of safetensors.
    """
    header, metadata = read_header(file, longest=longest)
    try:
        types = {str(entry["dtype"]) for entry in header.values()}
        if unread := sorted(types - _DTYPES.keys()):
            raise ValueError(f"values of the type {quoted(unread[0], 20)}, which is not read")
        tensors = {
            name: torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="meta")
            for name, entry in header.items()
        }
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(_DAMAGED) from error
    return tensors, metadata


def read_header(
    file: BinaryIO, *, longest: int = LONGEST_HEADER
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the entries of the tensors, unchecked, and the metadata; see :func:`read_layout`.

    Raises:
        ValueError: If the file does not begin with a header of safetensors.
    """
    start = file.read(8)
    begins, length = file.read(1), int.from_bytes(start, "little")
    if begins != b"{":
        raise ValueError("it does not begin as one")
    if length > longest:
        raise ValueError(f"a header of {length} bytes; expected at most {longest}")
    try:
        header = json.loads(begins + file.read(length - 1))
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(_DAMAGED) from error
    return header, metadata

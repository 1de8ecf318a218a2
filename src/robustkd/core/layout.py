"""Reading the header of a safetensors file: names, types and shapes of its tensors."""

from __future__ import annotations

import json
from typing import BinaryIO

import torch
from torch import Tensor

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
    length = int.from_bytes(file.read(8), "little")
    if length > longest:
        raise ValueError(f"a header of {length} bytes; expected at most {longest}")
    try:
        header = json.loads(file.read(length))
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        tensors = {
            name: torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="meta")
            for name, entry in header.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError("a damaged header, or values of a type that is not read") from error
    return tensors, metadata

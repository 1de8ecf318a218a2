"""Reading and checking the header of a safetensors file.

The format is: eight bytes of length (little-endian), a JSON object of that length, then the values
(https://github.com/huggingface/safetensors). The library itself only reads files that this package
has written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from io import BufferedIOBase
from typing import Any

from robustkd.teacher.untrusted.contents import (
    MOST_TENSORS,
    WIDTHS,
    Contents,
    Refusal,
    Stored,
    checked,
    checked_shape,
    dense_strides,
    quoted,
)

LONGEST_HEADER = 4 << 20
"""In bytes; 10,000 tensors with long names take about half of it."""
OWN_KEY = "robustkd"
_PREFIX = 8


def read_safetensors(
    file: BufferedIOBase,
    size: int,
    *,
    choice: int | None = None,  # noqa: ARG001 (there are no checksums)
) -> list[Contents]:
    """Locate the tensors of a safetensors file of ``size`` bytes.

    Args:
        file: The file.
        size: Number of bytes.
        choice: Ignored, because the format has no checksums, and a file has one state dict.

    Raises:
        Refusal: If the file violates the format.
    """
    length = int.from_bytes(file.read(_PREFIX), "little")
    if length > size - _PREFIX:
        raise Refusal(f"declares a header of {length} bytes and has {size}: it is cut off")
    if length > LONGEST_HEADER:
        raise Refusal(f"has a header of {length} bytes; expected at most {LONGEST_HEADER}")
    header = _header(file.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Refusal("has metadata that is not text; it is damaged")
    if len(header) > MOST_TENSORS:
        raise Refusal(f"holds {len(header)} tensors; expected at most {MOST_TENSORS}")
    start = _PREFIX + length
    tensors = [_tensor(name, entry, start) for name, entry in header.items()]
    _check_tiling(tensors, start, size)
    contents = Contents("safetensors", tuple(tensors), description=metadata.get(OWN_KEY, ""))
    return [checked(contents, file_size=size)]


def _header(text: bytes) -> dict[str, object]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        # Only the type of the error is shown, since its message may quote the file.
        raise Refusal(f"has a header that is not JSON ({type(error).__name__})") from error
    if not isinstance(header, dict):
        raise Refusal("has a header that is not a JSON object")
    return header


def _without_repetition(pairs: Iterable[tuple[str, Any]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise Refusal(f"has the key {quoted(key)} twice in its header")
        found[key] = value
    return found


def _tensor(name: str, entry: object, start: int) -> Stored:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Refusal(f"describes {quoted(name)} without dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        said = quoted(dtype) if isinstance(dtype, str) else type(dtype).__name__
        raise Refusal(
            f"gives {quoted(name)} the type {said}, which is not read; save float32 weights"
        )
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise Refusal(f"gives {quoted(name)} a shape or offsets that are not lists")
    begin, end = _offsets(name, offsets)
    sizes = checked_shape(name, shape)
    tensor = Stored(name, dtype, sizes, dense_strides(sizes), start + begin)
    if tensor.size != end - begin:
        raise Refusal(
            f"stores {quoted(name)} in {end - begin} bytes; its shape and type need {tensor.size}"
        )
    return tensor


def _offsets(name: str, offsets: list[object]) -> tuple[int, int]:
    whole = [offset for offset in offsets if type(offset) is int]
    if len(offsets) != 2 or len(whole) != 2 or not 0 <= whole[0] <= whole[1]:
        raise Refusal(f"gives {quoted(name)} offsets that are not a range")
    return whole[0], whole[1]


def _check_tiling(tensors: Iterable[Stored], start: int, size: int) -> None:
    """Check that every byte of the file belongs to exactly one tensor."""
    reached = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size)):
        if tensor.offset != reached:
            kind = "a gap before" if tensor.offset > reached else "an overlap with"
            raise Refusal(f"has {kind} the values of {quoted(tensor.name)}")
        reached += tensor.size
    if reached != size:
        kind = "is cut off" if reached > size else "has further bytes"
        raise Refusal(f"{kind}: its header describes {reached} bytes, and it has {size}")

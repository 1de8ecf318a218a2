"""Reader of ``arrays.npz``, the arrays that a run saves for the pictures of its report."""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.lib.format import (
    read_array_header_1_0,
    read_array_header_2_0,
    read_magic,
    write_array,
)

from robustkd.core.errors import InputError
from robustkd.core.folders import Folder

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_SIZES = {
    "images": 4,
    "triggered": 4,
    "trigger_mask": 3,
    "trigger_pattern": 3,
    "mask/": 3,
    "labels": 1,
    "predictions/": 1,
    "audit/": 4,
}
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    AttributeError,
    TypeError,
    MemoryError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors that numpy and zipfile raise for a file that is not an archive of arrays."""
_PER_IMAGE = ("triggered", "labels", "predictions/")
_LAYOUT = {
    4: "numbers of shape [k, C, H, W]",
    3: "numbers of shape [C, H, W]",
    1: "whole numbers of shape [k]",
}
_ROUNDING = 1e-4
_MOST_BYTES = 1 << 26
_MOST_MEMBERS = 1000
_MOST_RATIO = 200
_WORTH_A_RATIO = 1 << 22


def read_arrays(folder: Path) -> dict[str, Array]:
    """Read and check ``arrays.npz`` of a run folder.

    The known keys are ``images``, ``triggered``, ``trigger_mask``, ``trigger_pattern``,
    ``labels``, ``mask/<preset>/<stage>``, ``predictions/<method>``, and ``audit/<network>/before``
    with ``audit/<network>/after``. Each of them is optional;
    unknown keys are ignored.

    Args:
        folder: The run folder.

    Returns:
        Arrays by key, with pixels and masks as float64 in [0, 1]; empty if there is no such file.

    Raises:
        InputError: If the file is damaged, or an array has a wrong type, shape or range.
    """
    file = Path(folder) / "arrays.npz"
    if not os.path.lexists(file):
        return {}
    arrays = {}
    for key, array in _load(file).items():
        kind = next((kind for kind in _SIZES if _is(key, kind)), None)
        if kind is not None:
            arrays[key] = _checked(file, key, array, _SIZES[kind])
    _check_together(file, arrays)
    return arrays


def write_arrays(file: Path | BinaryIO, arrays: Mapping[str, Array]) -> None:
    """Write a compressed ``.npz`` file, as :func:`numpy.savez_compressed` does.

    Args:
        file: New file, or a binary file that is open for writing.
        arrays: Arrays by key.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w") as member:
                write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def _load(file: Path) -> dict[str, Array]:
    try:
        # The file is opened here because numpy does not close a damaged file.
        with (
            Folder.at(file.parent) as folder,
            folder.open(file.name) as opened,
        ):
            _check_sizes(opened)
            with np.load(opened, allow_pickle=False) as stored:
                return {
                    key: stored[key] for key in stored if any(_is(key, kind) for kind in _SIZES)
                }
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:100]
        message = f"{file}: not an .npz file of plain arrays ({reason}); repeat the run"
        raise InputError(message) from error


def _check_sizes(opened: BinaryIO) -> None:
    """Check, before decompression, that an archive is no larger than the pictures of a report.

    Raises:
        ValueError: If the archive is larger.
    """
    if os.fstat(opened.fileno()).st_size > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    with zipfile.ZipFile(opened) as archive:
        members = archive.infolist()
        if len(members) > _MOST_MEMBERS:
            raise ValueError(f"it has {len(members)} arrays, expected at most {_MOST_MEMBERS}")
        if sum(member.file_size for member in members) > _MOST_BYTES:
            raise ValueError(f"it decompresses to more than {_MOST_BYTES:,} bytes")
        for member in members:
            most = _MOST_RATIO * member.compress_size
            if member.file_size > _WORTH_A_RATIO and member.file_size > most:
                raise ValueError(f"an array decompresses to more than {_MOST_RATIO} times its size")
            _check_header(archive, member)
    opened.seek(0)


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Check that the header of an array declares no more values than the file has.

    Otherwise numpy would allocate memory for them.
    """
    with archive.open(member) as stored:
        readers = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}
        version = read_magic(stored)
        if version not in readers:
            raise ValueError(f"it has the unknown version {version}")
        shape, _, kind = readers[version](stored)
        if math.prod(shape) * kind.itemsize != member.file_size - stored.tell():
            raise ValueError("the size of an array differs from its header")


def _is(key: str, kind: str) -> bool:
    return key.startswith(kind) if kind.endswith("/") else key == kind


def _checked(file: Path, key: str, array: Array, size: int) -> Array:
    types = "iu" if size == 1 else "fiu"
    if array.ndim != size or array.dtype.kind not in types or 0 in array.shape:
        shown = f"{array.dtype} of shape {list(array.shape)}"
        raise InputError(f"{file}: {key} is {shown}; expected {_LAYOUT[size]}")
    if size == 1:
        return array
    whole = array.astype(np.float64)
    low, high = float(whole.min()), float(whole.max())
    # The negation also catches NaN, which fails every comparison.
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise InputError(
            f"{file}: {key} has values from {low:g} to {high:g}; expected values in [0, 1]"
        )
    return np.clip(whole, 0, 1)


def _check_together(file: Path, arrays: Mapping[str, Array]) -> None:
    for key, array in arrays.items():
        before = arrays.get(f"{key.removesuffix('/after')}/before")
        if key.startswith("audit/") and before is not None and array.shape != before.shape:
            raise InputError(
                f"{file}: {key} has shape {list(array.shape)}; expected {list(before.shape)}, that "
                "of the images before"
            )
    if "images" not in arrays:
        return
    images = arrays["images"].shape
    for key, array in arrays.items():
        if any(_is(key, kind) for kind in _PER_IMAGE) and len(array) != images[0]:
            raise InputError(
                f"{file}: {key} has {len(array)} entries; expected {images[0]}, one per image"
            )
    if "triggered" in arrays and arrays["triggered"].shape != images:
        shape = list(arrays["triggered"].shape)
        raise InputError(
            f"{file}: triggered has shape {shape}; expected the shape of images, {list(images)}"
        )

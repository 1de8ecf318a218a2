"""Reader of untrusted IDX files, the format of MNIST.

The format is: two zero bytes, a type code, the number of dimensions, each dimension as a big-endian
32-bit number, then the values (Yann LeCun, http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from robustkd.core.errors import InputError
from robustkd.core.files import is_regular
from robustkd.core.trees import open_named

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08
_MAX_DIMENSIONS = 4
_DEFLATE_LIMIT = 1032
"""Largest compression ratio of Deflate, which limits the content of a file by its size."""
_CHUNK = 1 << 18


def read_idx(path: Path, *, max_bytes: int = 1 << 30) -> UInt8[np.ndarray, "*shape"]:
    """Read an IDX file of unsigned bytes, gzipped or not (recognised by its first bytes).

    The declared size is compared with ``max_bytes`` and with the file before memory is allocated.
    No more than the declared size is unpacked, so that the memory is at most the declared size plus
    about 1 MiB.

    Args:
        path: The file.
        max_bytes: Largest accepted number of values, each of one byte.

    Returns:
        A writable array of the declared shape, with one to four dimensions, none of them empty.

    Raises:
        InputError: If the file is missing, unreadable, damaged, too large, or of another format.
    """
    try:
        if not is_regular(path):
            problem = "is not a regular file" if path.exists() else "does not exist"
            raise InputError(f"{path}: {problem}, expected an IDX file; check the path")
        with os.fdopen(open_named(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            gzipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            file.seek(0)
            if not gzipped:
                return _read(file, path, min(max_bytes, size))
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read(unpacked, path, min(max_bytes, size * _DEFLATE_LIMIT))
    except (OSError, EOFError, zlib.error) as error:
        raise _refusal(path, f"cannot be read ({error})") from error


def _read(stream: io.BufferedIOBase, path: Path, limit: int) -> UInt8[np.ndarray, "*shape"]:
    shape = _read_header(stream, path)
    declared = math.prod(shape)
    if not 0 < declared <= limit:
        raise _refusal(
            path, f"declares {'x'.join(map(str, shape))} values, expected 1 to {limit} in all"
        )
    values = np.empty(declared, dtype=np.uint8)
    found = 0
    # In chunks, because GzipFile copies each requested piece.
    while chunk := stream.read(min(_CHUNK, declared - found)):
        values[found : found + len(chunk)] = np.frombuffer(chunk, dtype=np.uint8)
        found += len(chunk)
    if found < declared:
        raise _refusal(path, f"ends after {found} values, expected the {declared} it declares")
    # Reading to the end makes gzip verify its checksum.
    if stream.read(1):
        raise _refusal(path, f"goes on after the {declared} values it declares")
    return values.reshape(shape)


def _read_header(stream: io.BufferedIOBase, path: Path) -> tuple[int, ...]:
    """Read the shape, after a check that the header is that of a supported IDX file."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise _refusal(path, f"begins with {magic.hex() or 'nothing'}, expected 0000 of IDX")
    code, dimensions = magic[2:]
    if code != _UNSIGNED_BYTE:
        raise _refusal(path, f"holds type 0x{code:02x}, expected 0x08 (unsigned bytes)")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise _refusal(path, f"has {dimensions} dimensions, expected 1 to {_MAX_DIMENSIONS}")
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise _refusal(path, f"ends within its header of {dimensions} dimensions")
    return tuple(int(size) for size in np.frombuffer(sizes, dtype=">u4"))


def _refusal(path: Path, problem: str) -> InputError:
    return InputError(f"{path}: {problem}; replace it by an intact IDX file")

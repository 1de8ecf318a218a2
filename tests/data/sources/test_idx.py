"""IDX files: intact files are read exactly, and all others are refused in one line."""

from __future__ import annotations

import gzip
import re
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from robustkd.core.errors import InputError
from robustkd.data import read_idx
from tests.data.sources.idx_files import header, idx_bytes

VALUES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
MIB = 1 << 20


@given(
    values=arrays.arrays(np.uint8, arrays.array_shapes(max_dims=4, max_side=5)),
    gzipped=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_reads_back_what_was_written(tmp_path_factory, values, gzipped):
    path = tmp_path_factory.getbasetemp() / "round-trip"
    content = idx_bytes(values)
    path.write_bytes(gzip.compress(content) if gzipped else content)
    read = read_idx(path)
    np.testing.assert_array_equal(read, values, strict=True)
    assert read.flags.writeable


@pytest.mark.parametrize(("name", "gzipped"), [("plain.gz", False), ("zipped", True)])
def test_gzip_is_recognised_by_content_and_not_by_name(tmp_path, name, gzipped):
    content = idx_bytes(VALUES)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if gzipped else content)
    np.testing.assert_array_equal(read_idx(path), VALUES)


def test_values_spanning_several_chunks_keep_their_order(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, 2 * MIB + 5, dtype=np.uint8)
    path = tmp_path / "long"
    path.write_bytes(gzip.compress(idx_bytes(values), compresslevel=1))
    np.testing.assert_array_equal(read_idx(path), values)


BODY = VALUES.tobytes()
DAMAGED = {
    "empty": (b"", "begins with nothing, expected 0000 of IDX"),
    "short magic": (b"\0\0\x08", "begins with 000008, expected 0000 of IDX"),
    "wrong magic": (b"PK\3\4" + BODY, "begins with 504b0304, expected 0000 of IDX"),
    "type": (header(2, 3, 4, code=0x0D) + BODY, "holds type 0x0d, expected 0x08 (unsigned bytes)"),
    "no dimension": (header() + BODY, "has 0 dimensions, expected 1 to 4"),
    "many dimensions": (header(1, 1, 1, 1, 24) + BODY, "has 5 dimensions, expected 1 to 4"),
    "short header": (header(2, 3, 4)[:-1], "ends within its header of 3 dimensions"),
    "no values": (header(0, 3, 4), "declares 0x3x4 values, expected 1 to 16 in all"),
    "truncated": (header(2, 3, 4) + BODY[:-1], "ends after 23 values, expected the 24 it declares"),
    "trailing": (header(2, 3, 4) + BODY + b"\0", "goes on after the 24 values it declares"),
}


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_named_with_the_file_and_the_remedy(tmp_path, damage, gzipped):
    content, problem = DAMAGED[damage]
    path = tmp_path / "bad"
    path.write_bytes(gzip.compress(content) if gzipped else content)
    if gzipped:
        # Here the bound follows from the size of the packed file.
        problem = re.sub("1 to 16 in all", f"1 to {path.stat().st_size * 1032} in all", problem)
    message = f"{path}: {problem}; replace it by an intact IDX file"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        read_idx(path)


PACKED = gzip.compress(idx_bytes(np.zeros(5000, dtype=np.uint8)))


CORRUPT = {
    "cut off": (PACKED[:-8], "Compressed file ended before"),
    "wrong checksum": (PACKED[:-8] + bytes(8), "CRC check failed"),
    "trailing": (PACKED + b"rubbish", "Not a gzipped file"),
    "not deflate": (PACKED[:10] + b"\xff" * 20, "Error -3 while decompressing"),
    "other method": (b"\x1f\x8b\x07" + PACKED[3:], "Unknown compression method"),
}


@pytest.mark.parametrize("damage", CORRUPT)
def test_corrupt_gzip(tmp_path, damage):
    content, reason = CORRUPT[damage]
    path = tmp_path / "bad.gz"
    path.write_bytes(content)
    expected = rf"^{re.escape(str(path))}: cannot be read \({reason}.*\); replace it by an intact"
    with pytest.raises(InputError, match=expected):
        read_idx(path)


def test_missing_file_and_folder(tmp_path):
    missing = tmp_path / "none"
    message = f"{missing}: does not exist, expected an IDX file; check the path"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        read_idx(missing)
    message = f"{tmp_path}: is not a regular file, expected an IDX file; check the path"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        read_idx(tmp_path)
    with pytest.raises(InputError, match=r"cannot be read \(.*File name too long"):
        read_idx(tmp_path / ("n" * 300))


def peak_of_refusal(path, **options) -> int:
    """Bytes allocated at most while ``path`` is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_idx(path, **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("sizes", [(2**32 - 1,) * 4, (2**31, 2**31, 4), (60_000, 28, 28)])
def test_absurd_sizes_are_refused_before_anything_is_allocated(tmp_path, sizes, gzipped):
    content = header(*sizes) + b"\0" * 100
    path = tmp_path / "absurd"
    path.write_bytes(gzip.compress(content) if gzipped else content)
    assert peak_of_refusal(path) < MIB


def test_a_decompression_bomb_with_a_small_header_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(header(10) + bytes(64 * MIB), compresslevel=1))
    assert peak_of_refusal(path) < MIB


def test_a_decompression_bomb_with_a_large_header_meets_the_limit(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(header(64 * MIB) + bytes(64 * MIB), compresslevel=1))
    assert peak_of_refusal(path, max_bytes=32 * MIB) < MIB


def test_reading_takes_little_more_than_the_values(tmp_path):
    path = tmp_path / "large.gz"
    path.write_bytes(gzip.compress(header(32 * MIB) + bytes(32 * MIB), compresslevel=1))
    tracemalloc.start()
    try:
        read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 34 * MIB
    finally:
        tracemalloc.stop()


@given(data=st.data(), gzipped=st.booleans())
@settings(max_examples=300, deadline=None)
def test_mutated_files_are_read_or_refused_never_anything_else(tmp_path_factory, data, gzipped):
    content = bytearray(idx_bytes(VALUES))
    if gzipped:
        content = bytearray(gzip.compress(content, mtime=0))
    place = st.integers(0, len(content) - 1)
    for position, byte in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=4)):
        content[position] = byte
    kept = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path_factory.getbasetemp() / "mutated"
    path.write_bytes(bytes(kept) + data.draw(st.binary(max_size=4)))
    refusal = None
    try:
        values = read_idx(path)
    except InputError as error:
        refusal = str(error)
    if refusal is None:
        assert values.dtype == np.uint8
        assert values.size <= max(path.stat().st_size, VALUES.size)
    else:
        assert "\n" not in refusal
        assert refusal.startswith(str(path))


def test_the_number_of_values_is_checked_even_with_a_valid_checksum(tmp_path):
    body = header(3) + b"ab"
    packer = zlib.compressobj(wbits=31)
    path = tmp_path / "short.gz"
    path.write_bytes(packer.compress(body) + packer.flush())
    with pytest.raises(InputError, match="ends after 2 values, expected the 3 it declares"):
        read_idx(path)

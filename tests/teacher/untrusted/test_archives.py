"""Archives that two readers could interpret differently are refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
import torch
from torch.utils.serialization import config

from robustkd.teacher.untrusted.contents import Refusal
from robustkd.teacher.untrusted.zip_layout import read_directory, tiled
from tests.marks import slow
from tests.teacher.untrusted.samples import checkpoint, members, saved, tensor_program, zipped
from tests.teacher.untrusted.test_readers import converted, damaged, same

STATE = {"w": torch.arange(5.0), "b": torch.ones(2, 3).t(), "none": torch.empty(0)}
OTHER = {"w": torch.arange(5.0) + 9, "b": torch.zeros(2, 3).t(), "none": torch.empty(0)}
CENTRAL, LOCAL, BEHIND, END64, LOCATOR, END = (
    b"PK\x01\x02",
    b"PK\x03\x04",
    b"PK\x07\x08",
    b"PK\x06\x06",
    b"PK\x06\x07",
    b"PK\x05\x06",
)


# What torch.save writes is read.


def test_torch_save_to_a_path_a_buffer_and_a_stream(tmp_path):
    for name in ("teacher.pt", "no-suffix", "ключ.pth", "a b.c.bin"):
        torch.save(STATE, tmp_path / name)
        assert same(converted((tmp_path / name).read_bytes())[1], STATE)
    with (tmp_path / "stream").open("wb") as file:
        torch.save(STATE, file)
    assert same(converted((tmp_path / "stream").read_bytes())[1], STATE)


@pytest.mark.parametrize("alignment", [1, 64, 128, 4096])
def test_any_alignment_is_read(alignment):
    with config.patch("save.storage_alignment", alignment):
        assert same(converted(saved(STATE))[1], STATE)


@pytest.mark.parametrize("size", range(1, 130, 3))
def test_any_valid_padding_is_read(size):
    """Between 4 bytes, which are none, and as many as the alignment asks for."""
    state = {"w": torch.arange(size, dtype=torch.uint8), "v": torch.ones(2)}
    assert same(converted(saved(state))[1], state)


@pytest.mark.parametrize(
    "left_out", ["byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"]
)
def test_archives_of_older_versions_are_read(left_out):
    parts = members(saved(STATE))
    del parts[f"archive/{left_out}"]
    assert same(converted(written(parts))[1], STATE)


def test_an_archive_that_was_packed_anew():
    assert same(converted(zipped(members(saved(STATE))))[1], STATE)


def test_an_archive_without_zip64():
    whole = saved(STATE)
    start = whole.index(END64)
    assert same(converted(whole[:start] + whole[whole.index(END) :])[1], STATE)


def written(parts: dict[str, bytes]) -> bytes:
    """What PyTorch's own writer makes of members: the one that torch.save calls."""
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    for name, content in parts.items():
        if not name.endswith(("/version", "/.data/serialization_id")):
            writer.write_record(name.partition("/")[2], content, len(content))
    writer.write_end_of_file()
    return buffer.getvalue()


LARGE = 2**32 + 8


def wide(path: Path) -> None:
    """The frame of an archive with one member beyond 4 GiB and one behind it, as torch.save's."""
    with path.open("wb") as file:
        entries = [_large(file, b"archive/data/0", LARGE), _large(file, b"archive/data/1", 12)]
        start = file.tell()
        file.write(b"".join(entries))
        place = file.tell()
        length = place - start
        file.write(
            struct.pack("<4sQ2H2I4Q", END64, 44, 0x031E, 45, 0, 0, 2, 2, length, start)
            + struct.pack("<4sIQI", LOCATOR, 0, place, 1)
            + struct.pack("<4s4H2IH", END, 0, 0, 2, 2, length, 2**32 - 1, 0)
        )


def _large(file: io.BufferedWriter, name: bytes, size: int) -> bytes:
    """Write a member that is nothing but a hole; returns its entry in the directory."""
    start, most = file.tell(), 2**32 - 1
    numbers = [size, size] if size > most else []
    numbers += [start] if start > most else []
    extra = struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
    local = extra if size <= most else struct.pack("<2H2Q", 1, 16, size, 0)
    padding = b"FB\x05\0ZZZZZ"
    common = (0, 0x0808, 0, 0, 0)
    file.write(
        struct.pack("<4s5H3I2H", LOCAL, *common, 0, 0, 0, len(name), len(local + padding))
        + name
        + local
        + padding
    )
    file.seek(size, io.SEEK_CUR)
    file.write(struct.pack("<4sI2Q", BEHIND, 7, size, size))
    clamped = [min(number, most) for number in (size, size, start)]
    return (
        struct.pack(
            "<4s6H3I5H2I",
            CENTRAL,
            0,
            *common,
            7,
            *clamped[:2],
            len(name),
            len(extra),
            0,
            0,
            0,
            0,
            clamped[2],
        )
        + name
        + extra
    )


def test_members_beyond_4_gib(tmp_path):
    """A sparse file of the layout that this torch wrote for a tensor of 4 GiB and 8 bytes."""
    wide(tmp_path / "large.pt")
    with (tmp_path / "large.pt").open("rb") as file:
        entries, directory = read_directory(file)
        places = tiled(file, entries, directory)
    assert [entry.size for entry in entries] == [LARGE, 12]
    assert entries[1].offset > 2**32
    assert places[0] == 30 + 14 + 20 + 9


# What two readers see differently is refused.


def cut(whole: bytes) -> tuple[bytes, bytes, bytes]:
    """Members, directory, and what is behind it."""
    start, stop = whole.index(CENTRAL), whole.index(END64)
    return whole[:start], whole[start:stop], whole[stop:]


def ending(count: int, length: int, start: int) -> bytes:
    return struct.pack("<4s4H2IH", END, 0, 0, count, count, length, start, 0)


def with_second_directory() -> bytes:
    """PyTorch follows the locator to the second; a reader that does not know ZIP64, the first."""
    one, other = saved(STATE), saved(OTHER)
    (body, first, _), (other_body, second, _) = cut(one), cut(other)
    assert len(one) == len(other)
    moved = bytearray(second)
    place = -1
    while (place := moved.find(CENTRAL, place + 1)) >= 0:
        (offset,) = struct.unpack_from("<I", moved, place + 42)
        struct.pack_into("<I", moved, place + 42, offset + len(body))
    count = first.count(CENTRAL)
    start = len(body) + len(other_body)
    record = struct.pack("<4sQ2H2I4Q", END64, 44, 0x031E, 45, 0, 0, count, count, len(moved), start)
    locator = struct.pack("<4sIQI", LOCATOR, 0, start + len(moved), 1)
    front = body + other_body + bytes(moved) + record
    return front + first + locator + ending(count, len(first), len(front))


def with_a_gap() -> bytes:
    """A whole further member between two that the directory knows."""
    body, directory, _ = cut(saved(STATE))
    hidden = cut(saved(OTHER))[0]
    start = body.index(LOCAL, 1)
    moved = bytearray(directory)
    place = 0
    while (place := moved.find(CENTRAL, place + 1)) >= 0:
        (offset,) = struct.unpack_from("<I", moved, place + 42)
        struct.pack_into("<I", moved, place + 42, offset + len(hidden))
    front = body[:start] + hidden + body[start:]
    return front + bytes(moved) + ending(directory.count(CENTRAL), len(directory), len(front))


def counted(more: int, between: bytes = b"") -> bytes:
    """An archive whose end counts more members, or fewer, and knows of bytes in between."""
    body, directory, _ = cut(saved(STATE))
    count, start = directory.count(CENTRAL) + more, len(body + between)
    return body + between + directory + ending(count, len(directory), start)


def changed(mark: bytes, place: int, value: bytes, *, which: int = 0) -> bytes:
    """An archive of torch.save with some bytes changed behind a mark."""
    whole = bytearray(saved(STATE))
    start = -1
    for _ in range(which + 1):
        start = whole.index(mark, start + 1)
    whole[start + place : start + place + len(value)] = value
    return bytes(whole)


def with_extra(mark: bytes) -> bytes:
    """A field for a name in Unicode, which some readers prefer to the name."""
    body, directory, _ = cut(saved(STATE))
    field = struct.pack("<2HBI", 0x7075, 9, 1, zlib.crc32(b"archive/data/0")) + b"evil"
    if mark == CENTRAL:
        named = struct.unpack_from("<H", directory, 28)[0]
        end = 46 + named
        directory = (
            directory[:30]
            + struct.pack("<H", len(field))
            + directory[32:end]
            + field
            + (directory[end:])
        )
    else:
        named, extra = struct.unpack_from("<2H", body, 26)
        end = 30 + named
        body = body[:end] + field[:extra].ljust(extra, b"\0") + body[end + extra :]
    return body + directory + ending(directory.count(CENTRAL), len(directory), len(body))


def renamed() -> bytes:
    """PyTorch asks for names without telling capitals from small letters."""
    parts = members(saved(STATE))
    return zipped([*parts.items(), ("archive/.Data/serialization_id", b"")])


AMBIGUOUS = {
    "a second directory behind a ZIP64 locator": (
        with_second_directory,
        "points at a second directory",
    ),
    "a member in a gap": (with_a_gap, "has bytes before its member "),
    "bytes before the directory": (
        lambda: counted(0, b"x"),
        "has bytes between its last member and its directory",
    ),
    "fewer members than there are": (
        lambda: counted(-1),
        "has a directory of ",
    ),
    "more members than there are": (
        lambda: counted(1),
        "has fewer members in its directory than it declares",
    ),
    "another count in the end": (
        lambda: changed(END, 10, b"\x02\0"),
        "describes its directory in two ways",
    ),
    "another count on this disk": (
        lambda: changed(END, 8, b"\x02\0"),
        "describes its directory in two ways",
    ),
    "another count in the ZIP64 end": (
        lambda: changed(END64, 24, b"\x02"),
        "describes its directory in two ways",
    ),
    "another directory in the end": (
        lambda: changed(END, 16, b"\x40\0"),
        "describes its directory in two ways",
    ),
    "a locator to elsewhere": (
        lambda: changed(LOCATOR, 8, b"\x40\0"),
        "points at a second directory",
    ),
    "another local size": (lambda: changed(LOCAL, 22, b"\x07"), "describes its member "),
    "another local checksum": (lambda: changed(LOCAL, 14, b"\x07"), "describes its member "),
    "another local name": (lambda: changed(LOCAL, 30, b"b"), "describes its member "),
    "another local time": (lambda: changed(LOCAL, 10, b"b"), "describes its member "),
    "another checksum behind": (lambda: changed(BEHIND, 4, b"abcd"), "describes its member "),
    "another size behind": (lambda: changed(BEHIND, 8, b"abcd"), "describes its member "),
    "no mark behind": (lambda: changed(BEHIND, 0, b"abcd"), "describes its member "),
    "bytes in the padding": (lambda: changed(b"FB", 5, b"a"), "has extra fields at its member "),
    "another field for the name": (
        lambda: with_extra(CENTRAL),
        "has extra fields in its directory",
    ),
    "another local field": (lambda: with_extra(LOCAL), "has extra fields at its member "),
    "a storage that is marked as a folder": (
        lambda: changed(CENTRAL, 38, b"\x10", which=4),
        "has file attributes at 'archive/data/0'",
    ),
    "names that differ in capitals": (renamed, "has two members named "),
    "a name that is no UTF-8": (
        lambda: saved(STATE).replace(b"archive/version", b"archive/versi\xff\xff"),
        "has a member whose name is not utf-8",
    ),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_an_ambiguous_archive_is_refused(kind):
    make, says = AMBIGUOUS[kind]
    refusal = damaged(make())
    assert refusal.startswith(says)
    assert refusal.isprintable()


def test_pytorch_sees_the_second_directory():
    """So that what is refused above is a real attack."""
    file = io.BytesIO(with_second_directory())
    assert same(torch.load(file, weights_only=True), OTHER)


@pytest.mark.parametrize("step", [7, slow(1)])
def test_changing_any_byte_is_refused_or_keeps_the_weights(step):
    """Changed in any one byte it is refused, or its weights are the same."""
    whole = saved(STATE)
    for place in range(0, len(whole), step):
        content = bytearray(whole)
        content[place] ^= 0x41
        try:
            _, found = converted(bytes(content))
        except Refusal:
            continue
        assert same(found, STATE), place


def test_a_byte_anywhere_between_is_refused():
    whole = saved(STATE)
    for place in range(0, len(whole) + 1, 7):
        assert damaged(whole[:place] + b"\0" + whole[place:]), place


def test_a_hand_made_archive_is_read():
    """The samples of the other tests are not refused for their form."""
    assert damaged(checkpoint(tensor_program(), _0=bytes(16))) == ""
